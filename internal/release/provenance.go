package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"slices"

	provenance "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/pkg/errors"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	predicateType = "https://slsa.dev/provenance/v1"
	buildType     = "https://github.com/graphload/graphload/dist@v1"
	builderID     = "https://github.com/graphload/graphload/cmd/graphload"
)

// Build is how the files of a release came to be.
type Build struct {
	Parameters   map[string]any // that whoever builds has chosen
	Internal     map[string]any // that follow from the machine, such as versions of tools
	Dependencies []Dependency
}

// Dependency is something that was built or packed.
type Dependency struct {
	Name   string
	URI    string
	Digest map[string]string // by algorithm
}

// Provenance returns an in-toto statement with SLSA provenance about files of a
// folder. It has no time and no identity of a run, so the same build has the
// same provenance.
func Provenance(dir string, names []string, b Build) ([]byte, error) {
	st := &intoto.Statement{Type: intoto.StatementTypeUri, PredicateType: predicateType}
	for _, name := range slices.Sorted(slices.Values(names)) {
		sum, err := SHA256(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		st.Subject = append(st.Subject, &intoto.ResourceDescriptor{Name: name, Digest: map[string]string{"sha256": sum}})
	}
	external, err := structpb.NewStruct(b.Parameters)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	internal, err := structpb.NewStruct(b.Internal)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	pred := &provenance.Provenance{
		BuildDefinition: &provenance.BuildDefinition{BuildType: buildType, ExternalParameters: external, InternalParameters: internal},
		RunDetails:      &provenance.RunDetails{Builder: &provenance.Builder{Id: builderID}},
	}
	for _, d := range b.Dependencies {
		pred.BuildDefinition.ResolvedDependencies = append(pred.BuildDefinition.ResolvedDependencies,
			&intoto.ResourceDescriptor{Name: d.Name, Uri: d.URI, Digest: d.Digest})
	}
	if err := pred.Validate(); err != nil {
		return nil, errors.Wrap(err, "provenance")
	}
	dt, err := protojson.Marshal(pred)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	st.Predicate = &structpb.Struct{}
	if err := protojson.Unmarshal(dt, st.Predicate); err != nil {
		return nil, errors.WithStack(err)
	}
	if err := st.Validate(); err != nil {
		return nil, errors.Wrap(err, "statement")
	}
	if dt, err = protojson.Marshal(st); err != nil {
		return nil, errors.WithStack(err)
	}
	// protojson varies its whitespace on purpose
	var compact, out bytes.Buffer
	if err := json.Compact(&compact, dt); err != nil {
		return nil, errors.WithStack(err)
	}
	if err := json.Indent(&out, compact.Bytes(), "", "  "); err != nil {
		return nil, errors.WithStack(err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func sha256Hex(dt []byte) string {
	sum := sha256.Sum256(dt)
	return hex.EncodeToString(sum[:])
}
