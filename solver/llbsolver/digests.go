package llbsolver

import (
	"bytes"
	"context"

	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/sourcepolicy"
	digest "github.com/opencontainers/go-digest"
)

// vertexDigests returns the digests that the vertices of a request have when
// they are loaded, each after its inputs. Loading is most of the cost of a lazy
// solve, and most definitions have the digests that their client gave them:
// they are encoded as the daemon would do it, and no policy, proxy or
// normalization changes their ops. ok is false when that does not hold or
// cannot be told, and when loading itself is needed.
func (b *llbBridge) vertexDigests(ctx context.Context, req *frontend.SolveRequest) (_ []digest.Digest, ok bool) {
	if b.proxyNetwork || len(req.CacheImports) > 0 || b.hasSourcePolicy(req) {
		return nil, false
	}
	def := req.Definition.Def
	if len(def) < 2 {
		return nil, false
	}
	seen := make(map[digest.Digest]struct{}, len(def))
	out := make([]digest.Digest, 0, len(def)-1)
	for i, dt := range def {
		hdr, canonical := pb.ReadOpHeader(dt)
		if !canonical || hdr.Source && !b.keepsSource(ctx, dt) {
			return nil, false
		}
		for _, in := range hdr.Inputs {
			if _, ok := seen[digest.Digest(in)]; !ok {
				return nil, false
			}
		}
		if i == len(def)-1 {
			break // points to the result and is no vertex
		}
		dgst := digest.FromBytes(dt)
		seen[dgst] = struct{}{}
		out = append(out, dgst)
	}
	return out, true
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
