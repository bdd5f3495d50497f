package kbs

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A generation is one version of RCAR, and what it does otherwise than the newest. Brokers compare versions for
// equality and negotiate nothing (§1.2).
type generation struct {
	version string
	trustee string // the releases that speak it

	plain  bool // attest has neither runtime-data nor init-data, and the hash does not cover additional evidence
	quoted bool // evidence is a JSON document inside a string
	oldJWE bool // RSA1_5 is all there is, and it comes in another form than RFC 7516's (§1.7)
	noP521 bool
}

// generations is every version that Trustee has released, newest first. A session begins with the first.
var generations = []generation{
	{version: "0.4.0", trustee: "v0.14.0 to v0.21.0"},
	{version: "0.2.0", trustee: "v0.12.0 and v0.13.0", plain: true, noP521: true},
	{version: "0.1.1", trustee: "v0.10 and v0.11.0", plain: true, oldJWE: true},
	{version: "0.1.0", trustee: "up to v0.9.0", plain: true, oldJWE: true, quoted: true},
}

func generationOf(version string) *generation {
	for i := range generations {
		if generations[i].version == version {
			return &generations[i]
		}
	}
	return nil
}

// spoken lists the versions of this build for the owner of a broker that speaks none of them.
func spoken() string {
	var all []string
	for _, g := range generations {
		all = append(all, fmt.Sprintf("%s (Trustee %s)", g.version, g.trustee))
	}
	return strings.Join(all, ", ")
}

// mismatch is the sentence in which a broker names its own version; nothing else does. Up to Trustee v0.9 it says
// "<=", from v0.10 on "=".
var mismatch = regexp.MustCompile(`KBS Client Protocol Version Mismatch: expect <?=(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3}) while the request is `)

// expected reads the version that a broker wants out of the detail of its refusal; "" if it does not name exactly one.
func expected(detail string) string {
	all := mismatch.FindAllStringSubmatch(detail, 2)
	if len(all) != 1 {
		return ""
	}
	return strings.Join(all[0][1:], ".")
}

// unreadable says that the broker could not even parse the body of auth. That is how brokers answer a tee that they do
// not know (401, §1.2), and those up to Trustee v0.9 an extra-params that is no string (400, from the web framework).
func unreadable(status int, detail string, body []byte) bool {
	switch status {
	case http.StatusUnauthorized:
		return unreadableDetail(detail)
	case http.StatusBadRequest:
		return strings.HasPrefix(string(body), "Json deserialize error")
	}
	return false
}

func unreadableDetail(detail string) bool {
	return strings.Contains(strings.ToLower(detail), "deserialize request")
}

// oldNames are the Azure kinds as Trustee spells them up to v0.15 (§1.2). The version cannot tell: both spellings occur
// with 0.4.0.
var oldNames = map[evidence.Kind]string{evidence.AzSNPvTPM: "azsnpvtpm", evidence.AzTDXvTPM: "aztdxvtpm"}

func isAzure(k evidence.Kind) bool { return oldNames[k] != "" }

// Bodies of §1.3 and §1.4. Dashes and underscores are as mixed as they are there.
type (
	request struct {
		Version string `json:"version"`
		TEE     string `json:"tee"`
		Extra   any    `json:"extra-params"`
	}
	extraParams struct {
		Hashes []string `json:"supported-hash-algorithms"`
	}
	attestation struct {
		InitData *initData   `json:"init-data,omitempty"`
		Runtime  runtimeData `json:"runtime-data"`
		Evidence composite   `json:"tee-evidence"`
	}
	initData struct {
		Format string `json:"format"`
		Body   string `json:"body"`
	}
	runtimeData struct {
		Nonce string             `json:"nonce"`
		Key   evidence.PublicKey `json:"tee-pubkey"`
	}
	composite struct {
		Primary    json.RawMessage `json:"primary_evidence"`
		Additional string          `json:"additional_evidence"`
	}
	plainAttestation struct {
		Key      evidence.PublicKey `json:"tee-pubkey"`
		Evidence any                `json:"tee-evidence"`
	}
)

// reportData is what primary evidence must carry (§1.5).
func (g *generation) reportData(b evidence.Binding) [64]byte {
	if g.plain {
		return b.ReportDataV2()
	}
	return b.ReportData()
}

// attestation writes the body of attest. Before 0.4.0 it has no place for the initdata document: the broker then does
// not compare the register, and only a policy that looks at the register in the token does.
func (g *generation) attestation(b evidence.Binding, primary json.RawMessage, initdata []byte) ([]byte, error) {
	switch {
	case g.quoted:
		return json.Marshal(plainAttestation{b.Key, string(primary)})
	case g.plain:
		return json.Marshal(plainAttestation{b.Key, primary})
	}
	body := attestation{Runtime: runtimeData{b.Nonce, b.Key}, Evidence: composite{primary, b.Additional}}
	if len(initdata) > 0 {
		body.InitData = &initData{"toml", string(initdata)}
	}
	return json.Marshal(body)
}

// parseChallenge reads the nonce. Members that it does not know are the broker's business, but for the choice of a hash:
// sha384 is all that was offered, since no TEE of ours needs another.
func parseChallenge(body []byte) (nonce string, err error) {
	m, err := evidence.Object(body)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(m["nonce"], &nonce); err != nil || nonce == "" || len(nonce) > maxNonce {
		return "", fmt.Errorf("nonce: want a string of 1 to %d bytes", maxNonce)
	}
	if extra, err := evidence.Object(m["extra-params"]); err == nil && extra["selected-hash-algorithm"] != nil {
		if hash := extra["selected-hash-algorithm"]; string(hash) != `"sha384"` && string(hash) != "null" {
			return "", fmt.Errorf("extra-params: hash algorithm %.20s, only sha384 was offered", hash)
		}
	}
	return nonce, nil
}

// parseToken reads the answer of attest. The token is for the broker; only its form matters here.
func parseToken(body []byte) (token string, err error) {
	m, err := evidence.Object(body)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(m["token"], &token); err != nil || token == "" || len(token) > maxToken {
		return "", fmt.Errorf("token: want a string of 1 to %d bytes", maxToken)
	}
	for _, c := range token {
		if c <= ' ' || c > '~' {
			return "", errors.New("token: holds characters that no HTTP header can carry")
		}
	}
	return token, nil
}
