package llbsolver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/sourcepolicy"
	digest "github.com/opencontainers/go-digest"
)

// vertexDigests returns the digests that the vertices of a request have when
// they are loaded, each after its inputs, without those that r owns already.
// Loading is most of the cost of a lazy solve, and most definitions have the
// digests that their client gave them: they are encoded as the daemon would do
// it, and no policy, proxy or normalization changes their ops. ok is false when
// that does not hold or cannot be told, and when loading itself is needed.
//
// Clients write ops after their inputs, so the definition is read from its end
// and no further than to what r owns, which is closed under inputs.
func (b *llbBridge) vertexDigests(ctx context.Context, req *frontend.SolveRequest, r registrar) (_ []digest.Digest, ok bool) {
	if b.proxyNetwork || len(req.CacheImports) > 0 || b.hasSourcePolicy(req) {
		return nil, false
	}
	def := req.Definition.Def
	if len(def) < 2 {
		return nil, false
	}
	var hdr pb.OpHeader
	// the last op points to the result and is no vertex
	if !hdr.Read(def[len(def)-1]) || len(hdr.Inputs) == 0 {
		return nil, false
	}
	var out []digest.Digest
	wanted := wantedVertices{}
	if !wanted.add(r, hdr.Inputs[0]) {
		return nil, false
	}
	for i := len(def) - 2; len(wanted) > 0; i-- {
		if i < 0 {
			return nil, false
		}
		sum := sha256.Sum256(def[i])
		dgst, ok := wanted[sum]
		if !ok {
			continue
		}
		delete(wanted, sum)
		if !hdr.Read(def[i]) || hdr.Source && !b.keepsSource(ctx, def[i]) {
			return nil, false
		}
		for _, in := range hdr.Inputs {
			if !wanted.add(r, in) {
				return nil, false
			}
		}
		out = append(out, dgst)
	}
	slices.Reverse(out)
	return out, true
}

// wantedVertices are vertices that have been referred to and not been read, by
// the checksum of their op.
type wantedVertices map[[sha256.Size]byte]digest.Digest

// add adds the vertex of a digest unless r owns it, and reports if the digest is
// valid.
func (w wantedVertices) add(r registrar, dgst []byte) bool {
	var sum [sha256.Size]byte
	const prefix = "sha256:"
	if len(dgst) != len(prefix)+2*len(sum) || string(dgst[:len(prefix)]) != prefix {
		return false
	}
	if _, err := hex.Decode(sum[:], dgst[len(prefix):]); err != nil || bytes.ContainsAny(dgst[len(prefix):], "ABCDEF") {
		return false
	}
	if _, ok := w[sum]; ok {
		return true
	}
	if d := digest.Digest(dgst); !r.Owns(d) {
		w[sum] = d
	}
	return true
}

// hasSourcePolicy reports if a policy can look at the sources of a request, or
// if that is not known.
func (b *llbBridge) hasSourcePolicy(req *frontend.SolveRequest) bool {
	pol, err := loadSourcePolicy(b.builder)
	if err != nil || pol != nil && len(pol.Rules) > 0 || len(req.SourcePolicies) > 0 {
		return true
	}
	sid, err := loadSourcePolicySession(b.builder)
	return err != nil || sid != ""
}

// keepsSource reports if loading a source op without any policy keeps it as it
// is, and does not normalize its identifier for example.
func (b *llbBridge) keepsSource(ctx context.Context, dt []byte) bool {
	var op pb.Op
	if err := op.Unmarshal(dt); err != nil {
		return false
	}
	if _, err := b.policy(sourcepolicy.NewEngine(nil)).Evaluate(ctx, &op); err != nil {
		return false
	}
	loaded, err := op.Marshal()
	return err == nil && bytes.Equal(loaded, dt)
}
