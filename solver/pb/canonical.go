package pb

import (
	"math"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// OpHeader is what a marshaled op says about its place in a definition.
type OpHeader struct {
	Inputs [][]byte // digests, parts of the op that was read
	Source bool     // the op is a source
}

// Read reads the header of a marshaled op without unmarshaling it, and reports
// if the encoding is canonical: if unmarshaling the op and marshaling it again
// gives the same bytes, so that its digest is the one that it has when it is
// loaded. It never reports that wrongly, but there may be encodings of which it
// does not know that they are canonical.
func (hdr *OpHeader) Read(dt []byte) (canonical bool) {
	hdr.Inputs, hdr.Source = hdr.Inputs[:0], false
	op := opEncoding()
	if !op.canonical(dt) {
		return false
	}
	for len(dt) > 0 {
		num, typ, n := protowire.ConsumeTag(dt)
		dt = dt[n:]
		n = protowire.ConsumeFieldValue(num, typ, dt)
		switch num {
		case op.inputs:
			input, _ := protowire.ConsumeBytes(dt)
			hdr.Inputs = append(hdr.Inputs, inputDigest(input, op.digest))
		case op.source:
			hdr.Source = true
		}
		dt = dt[n:]
	}
	return true
}

// inputDigest returns the digest of a canonical Input.
func inputDigest(dt []byte, field protowire.Number) []byte {
	if num, _, n := protowire.ConsumeTag(dt); num == field {
		v, _ := protowire.ConsumeBytes(dt[n:])
		return v
	}
	return nil
}

// opEncoding is the encoding of Op with the fields of its header.
var opEncoding = sync.OnceValue(func() *opMessage {
	desc := (&Op{}).ProtoReflect().Descriptor()
	number := func(desc protoreflect.MessageDescriptor, name protoreflect.Name) protowire.Number {
		return desc.Fields().ByName(name).Number()
	}
	return &opMessage{
		messageEncoding: newMessageEncoding(desc, map[protoreflect.FullName]*messageEncoding{}),
		inputs:          number(desc, "inputs"),
		source:          number(desc, "source"),
		digest:          number((&Input{}).ProtoReflect().Descriptor(), "digest"),
	}
})

type opMessage struct {
	*messageEncoding
	inputs, source, digest protowire.Number
}

// messageEncoding is how a message is marshaled deterministically: fields in
// the order of their numbers and then oneofs, no field that has the value of an
// absent one, maps sorted by key.
type messageEncoding struct {
	fields []*fieldEncoding // by number, nil for unknown ones
}

// afterFields is the rank of the first oneof.
const afterFields = protowire.MaxValidNumber + 1

type fieldEncoding struct {
	rank     protowire.Number // place in the order of fields
	kind     protoreflect.Kind
	list     bool
	packed   bool
	presence bool             // a zero value is not the same as no value
	message  *messageEncoding // of a message, or the entries of a map
	isMap    bool
}

func newMessageEncoding(desc protoreflect.MessageDescriptor, known map[protoreflect.FullName]*messageEncoding) *messageEncoding {
	if m, ok := known[desc.FullName()]; ok {
		return m
	}
	m := &messageEncoding{}
	known[desc.FullName()] = m
	for i := range desc.Fields().Len() {
		fd := desc.Fields().Get(i)
		f := &fieldEncoding{
			rank:     fd.Number(),
			kind:     fd.Kind(),
			list:     fd.IsList(),
			packed:   fd.IsPacked(),
			presence: fd.HasPresence(),
			isMap:    fd.IsMap(),
		}
		if oneof := fd.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() {
			f.rank = afterFields + protowire.Number(oneof.Index())
		}
		if fd.Message() != nil {
			f.message = newMessageEncoding(fd.Message(), known)
		}
		for len(m.fields) <= int(fd.Number()) {
			m.fields = append(m.fields, nil)
		}
		m.fields[fd.Number()] = f
	}
	return m
}

func (m *messageEncoding) canonical(dt []byte) bool {
	last := protowire.Number(0)
	lastKey, hasKey := "", false
	for len(dt) > 0 {
		num, typ, n := protowire.ConsumeTag(dt)
		if n != protowire.SizeTag(num) || int(num) >= len(m.fields) || m.fields[num] == nil {
			return false
		}
		dt = dt[n:]
		f := m.fields[num]
		repeated := f.list && !f.packed || f.isMap
		if f.rank < last || f.rank == last && !repeated {
			return false
		}
		if f.rank != last {
			hasKey = false
		}
		last = f.rank

		if typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(dt)
			if n < 0 || n != protowire.SizeBytes(len(v)) {
				return false
			}
			dt = dt[n:]
			if !f.canonicalBytes(v) {
				return false
			}
			if f.isMap {
				key, ok := entryKey(v)
				if !ok || hasKey && strings.Compare(lastKey, key) >= 0 {
					return false
				}
				lastKey, hasKey = key, true
			}
			continue
		}
		if typ != wireType(f.kind) || f.list && f.packed {
			return false
		}
		zero, n := canonicalScalar(f.kind, dt)
		if n < 0 || zero && !f.presence && !f.list {
			return false
		}
		dt = dt[n:]
	}
	return true
}

// canonicalBytes reports if v is a canonical value of a field that is encoded
// with its length.
func (f *fieldEncoding) canonicalBytes(v []byte) bool {
	switch {
	case f.isMap:
		return f.canonicalEntry(v)
	case f.message != nil:
		return f.kind == protoreflect.MessageKind && f.message.canonical(v)
	case f.kind == protoreflect.StringKind || f.kind == protoreflect.BytesKind:
		return len(v) > 0 || f.presence || f.list
	case f.packed:
		if len(v) == 0 {
			return false
		}
		for len(v) > 0 {
			_, n := canonicalScalar(f.kind, v)
			if n < 0 {
				return false
			}
			v = v[n:]
		}
		return true
	}
	return false
}

// canonicalEntry reports if v is an entry of a map with string keys: both
// fields are there, also when they are zero.
func (f *fieldEncoding) canonicalEntry(v []byte) bool {
	key, value := f.message.fields[1], f.message.fields[2]
	if key.kind != protoreflect.StringKind {
		return false
	}
	for num, field := range []*fieldEncoding{key, value} {
		got, typ, n := protowire.ConsumeTag(v)
		if n != 1 || int(got) != num+1 {
			return false
		}
		v = v[n:]
		if typ == protowire.BytesType {
			b, n := protowire.ConsumeBytes(v)
			if n < 0 || n != protowire.SizeBytes(len(b)) {
				return false
			}
			if field.message != nil && !field.message.canonical(b) {
				return false
			}
			if field.message == nil && field.kind != protoreflect.StringKind && field.kind != protoreflect.BytesKind {
				return false
			}
			v = v[n:]
			continue
		}
		if typ != wireType(field.kind) {
			return false
		}
		if _, n = canonicalScalar(field.kind, v); n < 0 {
			return false
		}
		v = v[n:]
	}
	return len(v) == 0
}

// entryKey returns the key of a canonical map entry.
func entryKey(v []byte) (string, bool) {
	_, _, n := protowire.ConsumeTag(v)
	if n < 0 {
		return "", false
	}
	key, n := protowire.ConsumeBytes(v[n:])
	return string(key), n >= 0
}

func wireType(kind protoreflect.Kind) protowire.Type {
	switch kind {
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.GroupKind:
		return protowire.StartGroupType
	}
	return protowire.VarintType
}

// canonicalScalar returns if the scalar at the start of dt is zero, and its
// length, or a negative length when the encoding is not canonical.
func canonicalScalar(kind protoreflect.Kind, dt []byte) (zero bool, n int) {
	switch wireType(kind) {
	case protowire.Fixed64Type:
		v, n := protowire.ConsumeFixed64(dt)
		return v == 0, n
	case protowire.Fixed32Type:
		v, n := protowire.ConsumeFixed32(dt)
		return v == 0, n
	case protowire.VarintType:
	default:
		return false, -1
	}
	v, n := protowire.ConsumeVarint(dt)
	if n < 0 || n != protowire.SizeVarint(v) {
		return false, -1
	}
	fits := true
	switch kind {
	case protoreflect.BoolKind:
		fits = v <= 1
	case protoreflect.Uint32Kind, protoreflect.Sint32Kind:
		fits = v <= math.MaxUint32
	case protoreflect.Int32Kind, protoreflect.EnumKind:
		fits = int64(int32(v)) == int64(v)
	}
	if !fits {
		return false, -1
	}
	return v == 0, n
}
