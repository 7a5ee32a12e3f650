package pb

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// randomMessage fills m with random fields, so that all kinds of fields that
// an op can have are there in some.
func randomMessage(rnd *rand.Rand, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if rnd.IntN(3) == 0 || depth > 6 {
			continue
		}
		switch {
		case fd.IsMap():
			for range rnd.IntN(4) {
				key := randomScalar(rnd, fd.MapKey()).MapKey()
				if fd.MapValue().Message() != nil {
					randomMessage(rnd, m.Mutable(fd).Map().Mutable(key).Message(), depth+1)
				} else {
					m.Mutable(fd).Map().Set(key, randomScalar(rnd, fd.MapValue()))
				}
			}
		case fd.IsList():
			for range rnd.IntN(4) {
				if fd.Message() != nil {
					randomMessage(rnd, m.Mutable(fd).List().AppendMutable().Message(), depth+1)
				} else {
					m.Mutable(fd).List().Append(randomScalar(rnd, fd))
				}
			}
		case fd.Message() != nil:
			randomMessage(rnd, m.Mutable(fd).Message(), depth+1)
		default:
			m.Set(fd, randomScalar(rnd, fd))
		}
	}
}

func randomScalar(rnd *rand.Rand, fd protoreflect.FieldDescriptor) protoreflect.Value {
	n := rnd.Int64N(300) - 100
	if rnd.IntN(3) == 0 {
		n = 0
	}
	s := string([]byte("abcdefghijklmnop")[:rnd.IntN(16)])
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n > 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n << rnd.IntN(40))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(s)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(s))
	}
	return fd.Default()
}

// TestCanonicalMarshaled has what the marshaler writes recognised, for random
// ops of all kinds.
func TestCanonicalMarshaled(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec
	for range 20000 {
		op := &Op{}
		randomMessage(rnd, op.ProtoReflect(), 0)
		dt, err := op.Marshal()
		require.NoError(t, err)
		var hdr OpHeader
		require.True(t, hdr.Read(dt), "%v", op)
		require.Equal(t, op.GetSource() != nil, hdr.Source)
		require.Len(t, hdr.Inputs, len(op.Inputs))
		for i, in := range op.Inputs {
			require.Equal(t, in.Digest, string(hdr.Inputs[i]))
		}
	}
}

// requireSound fails if dt is taken for canonical and is not.
func requireSound(t *testing.T, dt []byte) {
	t.Helper()
	var hdr OpHeader
	if !hdr.Read(dt) {
		return
	}
	var op Op
	require.NoError(t, op.Unmarshal(dt))
	again, err := op.Marshal()
	if err != nil {
		return // it cannot be loaded, its digest does not matter
	}
	require.Equal(t, dt, again)
}

// TestCanonicalMutated changes the encoding of random ops in random places.
func TestCanonicalMutated(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec
	for range 20000 {
		op := &Op{}
		randomMessage(rnd, op.ProtoReflect(), 0)
		dt, err := op.Marshal()
		require.NoError(t, err)
		for range rnd.IntN(3) + 1 {
			if len(dt) == 0 {
				break
			}
			i := rnd.IntN(len(dt))
			switch rnd.IntN(4) {
			case 0:
				dt[i] ^= byte(1 << rnd.IntN(8))
			case 1:
				dt[i] = 0
			case 2:
				dt = append(dt[:i], dt[i+1:]...)
			case 3:
				j := i + rnd.IntN(len(dt)-i)
				dt = append(dt, dt[i:j]...)
			}
		}
		requireSound(t, dt)
	}
}

func TestCanonicalRefused(t *testing.T) {
	t.Parallel()
	str := func(num protowire.Number, v string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), v)
	}
	varint := func(num protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
	}
	cat := func(parts ...[]byte) (out []byte) {
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	entry := func(k, v string) string { return string(cat(str(1, k), str(2, v))) }
	source := func(v []byte) []byte { return str(3, string(v)) }

	for name, dt := range map[string][]byte{
		"fields out of order":       cat(source(str(1, "docker-image://a")), str(1, string(str(1, "sha256:a")))),
		"field twice":               source(cat(str(1, "a"), str(1, "b"))),
		"two of a oneof":            cat(str(2, ""), source(str(1, "a"))),
		"zero value":                str(1, string(cat(str(1, "sha256:a"), varint(2, 0)))),
		"empty string":              source(str(1, "")),
		"unknown field":             str(100, "x"),
		"varint too long":           str(1, string(append(protowire.AppendTag(nil, 2, protowire.VarintType), 0x81, 0x00))),
		"map not sorted":            source(cat(str(2, entry("b", "1")), str(2, entry("a", "2")))),
		"map key twice":             source(cat(str(2, entry("a", "1")), str(2, entry("a", "2")))),
		"map entry without a value": source(str(2, string(str(1, "a")))),
		"truncated":                 source(str(1, "abc"))[:4],
		"not an op":                 []byte("hello"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var hdr OpHeader
			require.False(t, hdr.Read(dt))
		})
	}
	var hdr OpHeader
	require.True(t, hdr.Read(source(cat(str(1, "a"), str(2, entry("a", "")), str(2, entry("b", "2"))))))
	require.True(t, hdr.Source)
}

func FuzzOpHeader(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec
	for range 50 {
		op := &Op{}
		randomMessage(rnd, op.ProtoReflect(), 0)
		dt, err := op.Marshal()
		require.NoError(f, err)
		f.Add(dt)
	}
	f.Fuzz(func(t *testing.T, dt []byte) {
		var hdr OpHeader
		if !hdr.Read(dt) {
			return
		}
		var op Op
		if err := op.Unmarshal(dt); err != nil {
			return // it cannot be loaded
		}
		again, err := op.Marshal()
		if err == nil {
			require.Equal(t, dt, again)
		}
	})
}

func BenchmarkOpHeader(b *testing.B) {
	op := &Op{
		Inputs: []*Input{{Digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}},
		Op: &Op_Exec{Exec: &ExecOp{
			Meta:      &Meta{Args: []string{"/bin/sh", "-c", "a step of a chain"}, Cwd: "/", Env: []string{"PATH=/bin"}},
			Mounts:    []*Mount{{Dest: "/"}, {Dest: "/run/secrets/token", Input: -1, Output: -1, MountType: MountType_SECRET, SecretOpt: &SecretOpt{ID: "token"}}},
			Secretenv: []*SecretEnv{{ID: "token", Name: "TOKEN"}},
		}},
		Platform: &Platform{Architecture: "amd64", OS: "linux"},
	}
	dt, err := op.Marshal()
	require.NoError(b, err)
	var hdr OpHeader
	b.ReportAllocs()
	for b.Loop() {
		require.True(b, hdr.Read(dt))
	}
}
