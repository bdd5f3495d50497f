package imagepolicy

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func testdata(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRecordedOfSkopeo: Debian 12's skopeo 1.9.3 and gpg 2.2.40, `skopeo standalone-sign skopeo-manifest.json
// r.example/team/app:v1 FINGERPRINT -o skopeo.sig`, with a key made for this and thrown away.
func TestRecordedOfSkopeo(t *testing.T) {
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(testdata(t, "skopeo-manifest.json")))
	p := policyOf(t, requires(SignedBy, testdata(t, "skopeo-key.asc")))
	for ref, want := range map[string]string{
		"r.example/team/app:v1":        "",
		"r.example/team/app@" + digest: "",
		"r.example/team/app:v2":        "signedIdentity",
		"r.example/team/other:v1":      "signedIdentity",
	} {
		is(t, p.Verify(Claim{Reference: ref, Digests: []string{digest}, Simple: [][]byte{testdata(t, "skopeo.sig")}}, noKey, time.Now()), want)
	}
}

// TestRecordedOfSigstore: what cosign signs with keys of its own is made by github.com/sigstore/sigstore, of which this is
// v1.10.3: payload.Cosign, under LoadSignerVerifier with SHA-256 and under LoadDefaultSignerVerifier.
func TestRecordedOfSigstore(t *testing.T) {
	var all []struct{ Name, Key, Payload, Signature string }
	if err := json.Unmarshal(testdata(t, "sigstore.json"), &all); err != nil || len(all) != 8 {
		t.Fatalf("%d recorded, %v", len(all), err)
	}
	for i, r := range all {
		if r.Payload != string(cosignPayload(repository, one)) {
			t.Errorf("%s: the payload is %s, and the tests' is %s", r.Name, r.Payload, cosignPayload(repository, one))
		}
		claim := Claim{Reference: repository + "@" + one, Digests: []string{one}, Cosign: []Cosign{{[]byte(r.Payload), r.Signature}}}
		is(t, policyOf(t, requires(SigstoreSigned, []byte(r.Key))).Verify(claim, noKey, time.Now()), "")
		is(t, policyOf(t, requires(SigstoreSigned, []byte(all[(i+2)%len(all)].Key))).Verify(claim, noKey, time.Now()), "is not good under this key")
	}
}
