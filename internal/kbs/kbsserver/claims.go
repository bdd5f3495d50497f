package kbsserver

import (
	"encoding/json"
	"maps"
)

// annotated are the claims of a guest by the names under which Trustee puts them into a token (§1.6), so that policies
// written for it can be tried here.
func annotated(n *session, a *attestation) map[string]any {
	key := map[string]any{}
	for name, v := range a.key {
		key[name] = v
	}
	out := n.claims.Trustee()
	out["runtime_data_claims"] = map[string]any{"tee-pubkey": key, "nonce": a.nonce}
	if a.initData != nil {
		out["init_data_claims"] = a.initData.claims()
	}
	return out
}

// maxInitClaims bounds what of an initdata document goes into a token, which must fit into an HTTP header.
const maxInitClaims = 16 << 10

// slim gives the annotated claims as a token has room for them: an initdata document that is too large stays out, and so
// do the events of a log, which have no bound that a header could hold.
func slim(claims map[string]any) map[string]any {
	out := maps.Clone(claims)
	if b, err := json.Marshal(out["init_data_claims"]); err != nil || len(b) > maxInitClaims {
		delete(out, "init_data_claims")
	}
	for kind, v := range out {
		if tee, ok := v.(map[string]any); ok && tee["uefi_event_logs"] != nil {
			tee = maps.Clone(tee)
			delete(tee, "uefi_event_logs")
			out[kind] = tee
		}
	}
	return out
}
