package llbsolver

import (
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
)

// vertexDigests returns the digests that the vertices of a request have when
// they are loaded, each after its inputs. Loading is most of the cost of a lazy
// solve, and most definitions have the digests that their client gave them:
// they are encoded as the daemon would do it, and no policy, proxy or
// normalization changes their ops. ok is false when that does not hold or
// cannot be told, and when loading itself is needed.
func (b *llbBridge) vertexDigests(req *frontend.SolveRequest) (_ []digest.Digest, ok bool) {
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
		if !canonical || hdr.Source && !b.isNormalizedSource(dt) {
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

// isNormalizedSource reports if loading keeps a source op as it is.
func (b *llbBridge) isNormalizedSource(dt []byte) bool {
	var op pb.Op
	if err := op.Unmarshal(dt); err != nil {
		return false
	}
	if _, isBundle, err := gitBundleSourceOp(&op); err != nil || isBundle {
		return false
	}
	w, err := b.resolveWorker()
	return err == nil && normalizedSourceIdentifier(w, op.GetSource()) == op.GetSource().Identifier
}
