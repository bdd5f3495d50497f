package kbsserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A generation is what one version of RCAR has that others have not (§1.2). A broker speaks exactly one, as Trustee does.
type generation struct {
	version    string
	runtime    bool     // attest has runtime-data, init-data and composite evidence, and the hash covers the latter
	quoted     bool     // evidence is a JSON document inside a string
	oldAzure   bool     // Azure's kinds are spelled without dashes
	keys       []string // algorithms of tee-pubkey
	p521       bool     // elliptic keys may be on P-521 too
	oldJWE     bool     // raw header, tag within the ciphertext, nothing authenticated with it (§1.7)
	textParams bool     // extra-params is a string; another is refused by the web framework, before all else
}

var generations = map[string]generation{
	"0.4.0": {version: "0.4.0", runtime: true, keys: []string{evidence.ECDH, evidence.RSAOAEP}, p521: true},
	"0.2.0": {version: "0.2.0", oldAzure: true, keys: []string{evidence.ECDH, evidence.RSAOAEP}},
	"0.1.1": {version: "0.1.1", oldAzure: true, keys: []string{evidence.RSA15}, oldJWE: true},
	"0.1.0": {version: "0.1.0", oldAzure: true, keys: []string{evidence.RSA15}, oldJWE: true, quoted: true, textParams: true},
}

func generationOf(version string, oldAzureNames bool) (generation, error) {
	if version == "" {
		version = "0.4.0"
	}
	g, ok := generations[version]
	if !ok {
		return g, fmt.Errorf("protocol %.20q: want one of %s", version, strings.Join(slices.Sorted(maps.Keys(generations)), ", "))
	}
	g.oldAzure = g.oldAzure || oldAzureNames
	return g, nil
}

// Spellings of Azure's kinds up to Trustee v0.15 (§1.2).
var oldAzure = map[string]evidence.Kind{"azsnpvtpm": evidence.AzSNPvTPM, "aztdxvtpm": evidence.AzTDXvTPM}

// teeNames are the other words that Trustee knows as a tee; what it does not know it cannot deserialise.
var teeNames = []string{"snp", "tdx", "sgx", "cca", "csv", "se", "tpm", "nvidia", "hygondcu", "sample", "sampledevice"}

// kind reads the tee of a request. A name that this generation has not gives the words of Trustee's deserialiser: for a
// guest they are the only sign that the other spelling is wanted.
func (g generation) kind(tee string) (evidence.Kind, error) {
	names := slices.Clone(teeNames)
	if g.oldAzure {
		names = append(names, slices.Collect(maps.Keys(oldAzure))...)
	} else {
		names = append(names, string(evidence.AzSNPvTPM), string(evidence.AzTDXvTPM))
	}
	if !slices.Contains(names, tee) {
		slices.Sort(names)
		return "", fmt.Errorf("deserialize Request: unknown variant `%.40s`, expected one of `%s`", tee, strings.Join(names, "`, `"))
	}
	if kind, ok := oldAzure[tee]; ok {
		return kind, nil
	}
	return evidence.Kind(tee), nil
}

// errFramework is a body that servers up to Trustee v0.9 refuse with status 400 and this as plain text.
//
//lint:ignore ST1005 their words
var errFramework = errors.New("Json deserialize error")

// request reads the body of auth and gives the kind of evidence that the guest announces.
func (g generation) request(body []byte) (evidence.Kind, error) {
	m, err := evidence.ObjectOf(body, []string{"version", "tee", "extra-params"}, nil)
	if err != nil {
		return "", fmt.Errorf("deserialize Request: %w", err)
	}
	var version, tee string
	if err := errors.Join(json.Unmarshal(m["version"], &version), json.Unmarshal(m["tee"], &tee)); err != nil {
		return "", fmt.Errorf("deserialize Request: %w", err)
	}
	if g.textParams {
		var text string
		if err := json.Unmarshal(m["extra-params"], &text); err != nil {
			return "", fmt.Errorf("%w: extra-params: %w", errFramework, err)
		}
	}
	kind, err := g.kind(tee)
	if err != nil {
		return "", err
	}
	if version != g.version {
		return "", fmt.Errorf("KBS Client Protocol Version Mismatch: expect =%s while the request is %.40s", g.version, version)
	}
	return kind, nil
}

// publicKey reads the key that resources are wrapped for.
func (g generation) publicKey(raw json.RawMessage) (evidence.PublicKey, error) {
	members, err := evidence.Object(raw)
	if err != nil {
		return nil, fmt.Errorf("tee-pubkey: %w", err)
	}
	jwk := evidence.PublicKey{}
	for name, raw := range members {
		var v string
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("tee-pubkey %.40q: %w", name, err)
		}
		jwk[name] = v
	}
	_, alg, err := jwk.Key()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(g.keys, alg) || jwk["crv"] == "P-521" && !g.p521 {
		return nil, fmt.Errorf("tee-pubkey: %s %s: protocol %s has only %s", alg, jwk["crv"], g.version, strings.Join(g.keys, " and "))
	}
	return jwk, nil
}
