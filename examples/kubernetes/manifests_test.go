// Package kubernetes has manifests, which its test checks against the types of
// the API.
package kubernetes

import (
	"bufio"
	"bytes"
	stderrors "errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
)

// decode reads the objects of a manifest. A field that the API does not have, or
// that occurs twice, is an error.
func decode(dt []byte) ([]runtime.Object, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, errors.WithStack(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(dt)))
	var out []runtime.Object
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, errors.WithStack(err)
		}
		obj, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		out = append(out, obj)
	}
}

// values are the values of the enumerated types of the API. A type that the
// manifests use and that is missing here is also an error.
var values = map[reflect.Type][]string{
	reflect.TypeFor[corev1.AppArmorProfileType]():        {"Localhost", "RuntimeDefault", "Unconfined"},
	reflect.TypeFor[corev1.PersistentVolumeAccessMode](): {"ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"},
	reflect.TypeFor[corev1.Protocol]():                   {"SCTP", "TCP", "UDP"},
	reflect.TypeFor[corev1.ResourceName]():               {"cpu", "ephemeral-storage", "memory", "storage"},
	reflect.TypeFor[corev1.SeccompProfileType]():         {"Localhost", "RuntimeDefault", "Unconfined"},
	reflect.TypeFor[appsv1.PodManagementPolicyType]():    {"OrderedReady", "Parallel"},
	reflect.TypeFor[networkingv1.PolicyType]():           {"Egress", "Ingress"},
}

// validate looks for missing required fields, which are the fields that the API
// does not omit when they are empty, and for values that a type does not have.
func validate(path string, v reflect.Value) (errs []error) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			errs = validate(path, v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			errs = append(errs, validate(fmt.Sprintf("%s[%d]", path, i), v.Index(i))...)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			errs = append(errs, validate(fmt.Sprintf("%s[%s]", path, key), key)...)
			errs = append(errs, validate(fmt.Sprintf("%s[%s]", path, key), v.MapIndex(key))...)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			tag, ok := v.Type().Field(i).Tag.Lookup("json")
			if !ok { // a type with its own encoding, such as a quantity
				continue
			}
			name, options, _ := strings.Cut(tag, ",")
			field := strings.TrimSuffix(path+"."+name, ".") // inline fields have no name
			if !v.Field(i).IsZero() {
				errs = append(errs, validate(field, v.Field(i))...)
			} else if name != "" && options == "" {
				errs = append(errs, errors.Errorf("%s is missing", field))
			}
		}
	case reflect.String:
		if known := values[v.Type()]; v.Type() != reflect.TypeFor[string]() && !slices.Contains(known, v.String()) {
			errs = append(errs, errors.Errorf("%s is %s, a %s is one of %v", path, v, v.Type(), known))
		}
	}
	return errs
}

// mistakes returns all mistakes in an object.
func mistakes(obj runtime.Object) error {
	return stderrors.Join(validate(obj.GetObjectKind().GroupVersionKind().Kind, reflect.ValueOf(obj))...)
}

func TestManifests(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.yaml")
	require.NoError(t, err)
	require.Len(t, files, 2)
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			dt, err := os.ReadFile(file)
			require.NoError(t, err)
			objs, err := decode(dt)
			require.NoError(t, err)

			sets, services, policies := map[string]*appsv1.StatefulSet{}, map[string]*corev1.Service{}, 0
			for _, obj := range objs {
				require.NoError(t, mistakes(obj))
				meta, ok := obj.(metav1.Object)
				require.True(t, ok)
				require.Empty(t, validation.IsDNS1123Label(meta.GetName()), meta.GetName())
				switch obj := obj.(type) {
				case *appsv1.StatefulSet:
					sets[obj.Name] = obj
				case *corev1.Service:
					services[obj.Name] = obj
				case *networkingv1.NetworkPolicy:
					policies++
				}
			}
			require.Len(t, sets, 1)
			require.Equal(t, 1, policies)
			for _, set := range sets {
				checkSet(t, set, services[set.Spec.ServiceName], objs)
			}
		})
	}
}

// checkSet checks what the types do not express: that names match, and that
// nothing listens on the network without certificates.
func checkSet(t *testing.T, set *appsv1.StatefulSet, svc *corev1.Service, objs []runtime.Object) {
	t.Helper()
	require.NotNil(t, svc, "service of the set")
	require.Equal(t, "None", svc.Spec.ClusterIP, "each replica needs its own name")
	labels := set.Spec.Template.Labels
	require.Equal(t, set.Spec.Selector.MatchLabels, labels)
	require.Equal(t, svc.Spec.Selector, labels)

	volumes := map[string]bool{}
	for _, v := range set.Spec.Template.Spec.Volumes {
		volumes[v.Name] = true
		if v.ConfigMap != nil {
			require.True(t, slices.ContainsFunc(objs, func(obj runtime.Object) bool {
				cm, ok := obj.(*corev1.ConfigMap)
				return ok && cm.Name == v.ConfigMap.Name
			}), "config map %s", v.ConfigMap.Name)
		}
	}
	for _, v := range set.Spec.VolumeClaimTemplates {
		volumes[v.Name] = true
	}
	require.Len(t, set.Spec.Template.Spec.Containers, 1)
	c := set.Spec.Template.Spec.Containers[0]
	for _, m := range c.VolumeMounts {
		require.True(t, volumes[m.Name], "volume %s is one of %v", m.Name, slices.Collect(maps.Keys(volumes)))
	}
	ports := map[string]bool{}
	for _, p := range c.Ports {
		ports[p.Name] = true
	}
	for _, p := range svc.Spec.Ports {
		require.True(t, ports[p.TargetPort.StrVal], "port %s", p.TargetPort.StrVal)
	}

	args := strings.Join(c.Args, " ")
	require.Contains(t, args, "--addr=tcp://")
	for _, flag := range []string{"--tlscacert=/certs/", "--tlscert=/certs/", "--tlskey=/certs/", "--addr=unix://"} {
		require.Contains(t, args, flag)
	}
	require.NotContains(t, args, "debugaddr", "the debug endpoint is not for the network")
	require.NotNil(t, c.ReadinessProbe)
	require.NotNil(t, c.LivenessProbe)
	if strings.Contains(set.Name, "rootless") {
		require.Nil(t, c.SecurityContext.Privileged)
		require.True(t, *c.SecurityContext.RunAsNonRoot)
		require.Equal(t, int64(1000), *c.SecurityContext.RunAsUser)
	} else {
		require.True(t, *c.SecurityContext.Privileged)
	}
}

// TestManifestsStrict has mistakes that a lenient reader would ignore.
func TestManifestsStrict(t *testing.T) {
	t.Parallel()
	dt, err := os.ReadFile("buildkitd.yaml")
	require.NoError(t, err)
	for old, new := range map[string]string{
		"readinessProbe:":            "readynessProbe:",
		"replicas: 3":                "replicas: many",
		"  replicas: 3":              "  replicas: 3\n  replicas: 3",
		"apiVersion: apps/v1":        "apiVersion: apps/v9",
		"      targetPort: grpc-tls": "      targetprt: grpc-tls",
	} {
		require.True(t, bytes.Contains(dt, []byte(old)), old)
		_, err := decode(bytes.Replace(dt, []byte(old), []byte(new), 1))
		require.Error(t, err, new)
	}
}

// TestManifestsValid has mistakes that the types alone allow.
func TestManifestsValid(t *testing.T) {
	t.Parallel()
	dt, err := os.ReadFile("buildkitd.yaml")
	require.NoError(t, err)
	for old, want := range map[string]struct{ new, err string }{
		"        - name: buildkitd\n          image": {"        - image", "StatefulSet.spec.template.spec.containers[0].name is missing"},
		"              mountPath: /certs\n":          {"", "StatefulSet.spec.template.spec.containers[0].volumeMounts[2].mountPath is missing"},
		"              containerPort: 1234\n":        {"", "StatefulSet.spec.template.spec.containers[0].ports[0].containerPort is missing"},
		"  serviceName: buildkitd\n":                 {"", "StatefulSet.spec.serviceName is missing"},
		"      port: 1234\n":                         {"", "Service.spec.ports[0].port is missing"},
		"accessModes: [ReadWriteOnce]":               {"accessModes: [ReadWriteTwice]", "StatefulSet.spec.volumeClaimTemplates[0].spec.accessModes[0] is ReadWriteTwice"},
		"podManagementPolicy: Parallel":              {"podManagementPolicy: parallel", "StatefulSet.spec.podManagementPolicy is parallel"},
		"policyTypes: [Ingress]":                     {"policyTypes: [Inbound]", "NetworkPolicy.spec.policyTypes[0] is Inbound"},
		"      protocol: TCP":                        {"      protocol: tcp", "Service.spec.ports[0].protocol is tcp"},
		`cpu: "1"`:                                   {`cpus: "1"`, "StatefulSet.spec.template.spec.containers[0].resources.requests[cpus] is cpus"},
		"  clusterIP: None":                          {"  type: HeadlessService", "Service.spec.type is HeadlessService"},
	} {
		require.True(t, bytes.Contains(dt, []byte(old)), old)
		objs, err := decode(bytes.Replace(dt, []byte(old), []byte(want.new), 1))
		require.NoError(t, err, want.err)
		var found []error
		for _, obj := range objs {
			found = append(found, mistakes(obj))
		}
		require.ErrorContains(t, stderrors.Join(found...), want.err)
	}
}
