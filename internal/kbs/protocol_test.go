package kbs

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

const (
	p256, p521 = "ECDH-ES+A256KW P-256", "ECDH-ES+A256KW P-521"
	oaep, rsa1 = "RSA-OAEP-256 ", "RSA1_5 "
	resource   = "resource/a/b/c"
)

var oldAzureNames = []string{"snp", "sample", "azsnpvtpm", "aztdxvtpm"}

func TestGenerations(t *testing.T) {
	for name, c := range map[string]struct {
		trustee *trustee
		kind    evidence.Kind
		keyType string
		want    []string
	}{
		"0.4.0":       {&trustee{version: "0.4.0"}, evidence.Sample, "", []string{"auth 0.4.0 sample", "attest new " + p256}},
		"0.4.0 P-521": {&trustee{version: "0.4.0"}, evidence.Sample, "ECDH-ES+A256KW-P521", []string{"auth 0.4.0 sample", "attest new " + p521}},
		"0.4.0 RSA":   {&trustee{version: "0.4.0"}, evidence.Sample, "RSA-OAEP-256", []string{"auth 0.4.0 sample", "attest new " + oaep}},
		"0.2.0":       {&trustee{version: "0.2.0"}, evidence.Sample, "ECDH-ES+A256KW-P256", []string{"auth 0.4.0 sample", "auth 0.2.0 sample", "attest old " + p256}},
		"0.2.0 RSA":   {&trustee{version: "0.2.0"}, evidence.Sample, "RSA-OAEP-256", []string{"auth 0.4.0 sample", "auth 0.2.0 sample", "attest old " + oaep}},
		"0.1.1":       {&trustee{version: "0.1.1"}, evidence.Sample, "", []string{"auth 0.4.0 sample", "auth 0.1.1 sample", "attest old " + rsa1}},
		"0.1.1 P-521": {&trustee{version: "0.1.1"}, evidence.Sample, "ECDH-ES+A256KW-P521", []string{"auth 0.4.0 sample", "auth 0.1.1 sample", "attest old " + rsa1}},
		"0.1.0":       {&trustee{version: "0.1.0"}, evidence.Sample, "", []string{"auth 0.4.0 sample", "auth 0.4.0 sample", "auth 0.1.0 sample", "attest old " + rsa1}},
		"az 0.4.0":    {&trustee{version: "0.4.0"}, evidence.AzSNPvTPM, "", []string{"auth 0.4.0 az-snp-vtpm", "attest new " + p256}},
		"az 0.4.0 of Trustee v0.15": {&trustee{version: "0.4.0", tees: oldAzureNames, forms: []string{"old"}}, evidence.AzTDXvTPM, "", []string{
			"auth 0.4.0 az-tdx-vtpm", "auth 0.4.0 aztdxvtpm", "attest new " + p256, "auth 0.4.0 aztdxvtpm", "attest old " + p256}},
		"az 0.4.0 of Trustee v0.17": {&trustee{version: "0.4.0", forms: []string{"old"}}, evidence.AzSNPvTPM, "", []string{
			"auth 0.4.0 az-snp-vtpm", "attest new " + p256, "auth 0.4.0 az-snp-vtpm", "attest old " + p256}},
		"az 0.2.0": {&trustee{version: "0.2.0", tees: oldAzureNames}, evidence.AzSNPvTPM, "", []string{
			"auth 0.4.0 az-snp-vtpm", "auth 0.4.0 azsnpvtpm", "auth 0.2.0 azsnpvtpm", "attest old " + p256}},
		"az 0.1.0": {&trustee{version: "0.1.0", tees: oldAzureNames}, evidence.AzSNPvTPM, "", []string{
			"auth 0.4.0 az-snp-vtpm", "auth 0.4.0 azsnpvtpm", "auth 0.4.0 azsnpvtpm", "auth 0.1.0 azsnpvtpm", "attest old " + rsa1}},
	} {
		t.Run(name, func(t *testing.T) {
			b := c.trustee.listen(t)
			b.KeyType = c.keyType
			client := newProbe(t, c.kind, b)
			fetch(t, client, b)
			if diff := cmp.Diff(append(c.want, resource), c.trustee.asked()); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
			fetch(t, client, b)
			if diff := cmp.Diff([]string{resource}, c.trustee.asked()); diff != "" {
				t.Errorf("requests of the second time:\n%s", diff)
			}
			c.trustee.restart()
			fetch(t, client, b)
			want := append([]string{resource, resource}, c.want[len(c.want)-2:]...)
			if diff := cmp.Diff(append(want, resource), c.trustee.asked()); diff != "" {
				t.Errorf("what the session learned is lost with the broker's restart:\n%s", diff)
			}
		})
	}
}

func fetch(t *testing.T, c *Client, b Broker) {
	t.Helper()
	g, err := c.Fetch(t.Context(), []Want{{b.URL, "a/b/c"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := g.Key(b.URL, "a/b/c"); !bytes.Equal(got, bytes.Repeat([]byte{5}, 32)) {
		t.Fatalf("resource %x", got)
	}
}

func TestFallBackHasAnEnd(t *testing.T) {
	turn := func(versions ...string) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			refusing("AttestationError", "KBS Client Protocol Version Mismatch: expect ="+versions[n%len(versions)]+" while the request is x")(w, r)
			return true
		}
	}
	unread := func(w http.ResponseWriter, r *http.Request, _ int) bool {
		refusing("AttestationError", "deserialize Request")(w, r)
		return true
	}
	for name, c := range map[string]struct {
		trustee *trustee
		kind    evidence.Kind
		keyType string
		want    string
		asks    int
	}{
		"two brokers of different releases": {&trustee{before: turn("0.2.0", "0.1.1")}, evidence.Sample, "", "a session changes only once", 2},
		"back and forth":                    {&trustee{before: turn("0.2.0", "0.4.0")}, evidence.Sample, "", "a session changes only once", 2},
		"a version to come":                 {&trustee{before: turn("0.5.0")}, evidence.Sample, "", "the broker speaks protocol 0.5.0, this build speaks 0.4.0", 1},
		"a kind that it does not know":      {&trustee{before: unread}, evidence.SNP, "", "no verifier for this kind of TEE", 2},
		"Azure under no name":               {&trustee{before: unread}, evidence.AzSNPvTPM, "", "built with the Azure verifiers", 3},
		"Azure in no form":                  {&trustee{version: "0.4.0", forms: []string{}}, evidence.AzSNPvTPM, "", "the form is not the reason", 4},
		"a sample, which has one form":      {&trustee{version: "0.4.0", forms: []string{}}, evidence.Sample, "", "no sample evidence", 2},
		"P-521 with 0.2.0":                  {&trustee{version: "0.2.0"}, evidence.Sample, "ECDH-ES+A256KW-P521", "protocol 0.2.0 (Trustee v0.12.0 and v0.13.0) does not know it", 2},
		"a mismatch that comes with 403": {&trustee{before: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			answering(403, `{"type":"`+errorType+`AttestationError","detail":"KBS Client Protocol Version Mismatch: expect =0.2.0 while the request is 0.4.0"}`)(w, r)
			return true
		}}, evidence.Sample, "", "Mismatch", 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := c.trustee.listen(t)
			b.KeyType = c.keyType
			g, err := newProbe(t, c.kind, b).Fetch(t.Context(), []Want{{b.URL, "a/b/c"}})
			if err == nil || g != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if asks := c.trustee.asked(); len(asks) != c.asks {
				t.Errorf("%d requests, want %d: %q", len(asks), c.asks, asks)
			}
		})
	}
}

func TestTheMismatchIsReadStrictly(t *testing.T) {
	const head, tail = "KBS Client Protocol Version Mismatch: expect ", " while the request is 0.4.0"
	for detail, want := range map[string]string{
		head + "=0.2.0" + tail: "0.2.0",
		"Attestation error: RCAR handshake Auth failed: " + head + "=0.1.1" + tail: "0.1.1",
		head + "<=0.1.0" + tail:                              "0.1.0",
		head + "=0.2.0":                                      "",
		head + "0.2.0" + tail:                                "",
		head + "^0.2.0" + tail:                               "",
		head + ">=0.2.0" + tail:                              "",
		head + "=0.2" + tail:                                 "",
		head + "=0.2.0.0" + tail:                             "",
		head + "=00.2.0" + tail:                              "",
		head + "=0.2.0-rc1" + tail:                           "",
		head + "=0.2.0, =0.1.1" + tail:                       "",
		head + "= 0.2.0" + tail:                              "",
		head + "=0.2.0" + tail + head + "=0.1.1" + tail:      "",
		"expect =0.2.0" + tail:                               "",
		head + "=" + strings.Repeat("1", 40) + ".0.0" + tail: "",
		"": "",
	} {
		if got := expected(detail); got != want {
			t.Errorf("%q: %q, want %q", detail, got, want)
		}
	}
}

func TestKeyTypes(t *testing.T) {
	for keyType := range keyTypes {
		if _, err := New([]Broker{{URL: "https://b", KeyType: keyType}}, sampler{}, nil); err != nil {
			t.Error(err)
		}
	}
	for _, keyType := range []string{"RSA1_5", "P-256", "ECDH-ES+A256KW-P384"} {
		if _, err := New([]Broker{{URL: "https://b", KeyType: keyType}}, sampler{}, nil); err == nil || !strings.Contains(err.Error(), "key type") {
			t.Errorf("%s: error %v", keyType, err)
		}
		if _, _, err := newKeyPair(keyType, &generations[0]); err == nil {
			t.Errorf("%s is made", keyType)
		}
	}
}

func TestRefusalsAreFinal(t *testing.T) {
	for _, v := range []string{"PolicyDeny", "PluginInternalError", "AttestationError", "JweError", ""} {
		t.Run(v, func(t *testing.T) {
			b := &trustee{version: "0.4.0", before: func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if strings.Contains(r.URL.Path, "/resource/") {
					refusing(v, "no")(w, r)
					return true
				}
				return false
			}}
			at := b.listen(t)
			_, err := newProbe(t, evidence.AzSNPvTPM, at).Fetch(t.Context(), []Want{{at.URL, "a/b/c"}, {at.URL, "a/b/d"}})
			d, ok := errors.AsType[*DeniedError](err)
			if !ok || d.Variant != v || d.Path != "a/b/c" || d.Cause == "" || d.Next == "" {
				t.Errorf("error %v", err)
			}
			asks := b.asked()
			if i := slices.IndexFunc(asks, func(a string) bool { return a == resource }); i != len(asks)-1 || len(asks) != 3 {
				t.Errorf("requests %q", asks)
			}
		})
	}
}
