package kbs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Every row of the three tables is reached by a case here, and every case says a word of its cause.

func TestDenialsAreExplained(t *testing.T) {
	old := generationOf("0.2.0")
	reached := map[string]bool{}
	for _, c := range []struct {
		variant, at string
		detail      string
		facts       facts
		want        string
	}{
		{"AttestationError", atAuth, "deserialize Request", facts{kind: evidence.AzTDXvTPM}, "by the names of Trustee up to v0.15"},
		{"AttestationError", atAuth, "deserialize Request", facts{kind: evidence.TDX}, "no verifier for this kind of TEE"},
		{"AttestationError", atAuth, "RCAR handshake Auth failed", facts{kind: evidence.Sample}, "--allow-sample"},
		{"AttestationError", atAuth, "RCAR handshake Auth failed", facts{kind: evidence.SNP}, "cannot reach its attestation service"},
		{"FailedAuthentication", atAuth, "", facts{kind: evidence.SNP}, "cannot reach its attestation service"},
		{"PolicyDeny", atResource, "", facts{kind: evidence.Sample}, "allow_all.rego"},
		{"PolicyDeny", atResource, "", facts{kind: evidence.SNP, gen: old}, "Trustee up to v0.13"},
		{"PolicyDeny", atResource, "", facts{kind: evidence.SNP, gen: &generations[0]}, "reference values"},
		{"ParsePolicyError", atResource, "", facts{}, "cannot evaluate its resource policy"},
		{"PolicyEngineError", atResource, "", facts{}, "cannot evaluate its resource policy"},
		{"PolicyEngineFailed", atResource, "", facts{}, "cannot evaluate its resource policy"},
		{"PluginInternalError", atResource, "", facts{}, "the resource is not there"},
		{"ReadSecretFailed", atResource, "", facts{}, "the resource is not there"},
		{"TokenNotFound", atResource, "", facts{}, "several instances"},
		{"InvalidCookie", atAttest, "", facts{}, "several instances"},
		{"TokenVerifierError", atResource, "", facts{}, "does not accept its own token"},
		{"TokenIssueFailed", atAttest, "", facts{}, "gave it no token"},
		{"JweError", atResource, "", facts{}, "set the key type"},
		{"InvalidRequestPath", atResource, "", facts{}, "not a key broker with the resource plugin"},
		{"PluginNotFound", atResource, "", facts{}, "not a key broker with the resource plugin"},
		{"AdminAuthAccess", atResource, "", facts{}, "for an administrator"},
		{"AdminAuthInitialization", atResource, "", facts{}, "for an administrator"},
		{"SerdeError", atAttest, "", facts{}, "changes bodies"},
		{"RvpsError", atAttest, "", facts{}, "not set up right"},
		{"HTTPSFailed", atAttest, "", facts{}, "not set up right"},
		{"", atResource, "", facts{}, "not in the words of a key broker"},
		{"Novelty", atResource, "", facts{}, "not one that Trustee up to v0.21 gives"},
		{"AttestationError", atResource, "", facts{}, "not one that Trustee up to v0.21 gives"},
	} {
		d := &DeniedError{Broker: "https://b", Variant: c.variant, Detail: c.detail, at: c.at}
		d.Cause, d.Next = d.explain(c.facts)
		if !strings.Contains(d.Cause+d.Next, c.want) || d.Cause == "" || d.Next == "" {
			t.Errorf("%s at %s: %q and %q, want %q", c.variant, c.at, d.Cause, d.Next, c.want)
		}
		if text := d.Error(); !strings.Contains(text, d.Cause) || !strings.Contains(text, "; next: "+d.Next) {
			t.Errorf("the error does not tell: %s", text)
		}
		reached[d.Cause+d.Next] = true
	}
	for _, r := range denialReasons {
		if !reached[r.cause+r.next] {
			t.Errorf("no case for %q", r.cause)
		}
	}
}

func TestRefusedEvidenceIsExplained(t *testing.T) {
	report := func(version, vmpl, keyInfo uint32) *evidence.SNPReport {
		return &evidence.SNPReport{Version: version, VMPL: vmpl, KeyInfo: keyInfo}
	}
	now, old := &generations[0], generationOf("0.2.0")
	reached := map[string]bool{}
	for name, c := range map[string]struct {
		facts facts
		want  []string // of the causes, in order, all of them but the last
	}{
		"SNP": {facts{kind: evidence.SNP, gen: now, report: report(3, 0, 0), chain: true, initdata: true},
			[]string{"do not fit the report", "HOST_DATA"}},
		"SNP without a chain":        {facts{kind: evidence.SNP, gen: now, report: report(3, 0, 0)}, []string{"VCEK of this chip"}},
		"SNP of old firmware":        {facts{kind: evidence.SNP, gen: now, report: report(2, 0, 0), chain: true}, []string{"version 2", "do not fit"}},
		"SNP under an SVSM":          {facts{kind: evidence.SNP, gen: now, report: report(3, 2, 0), chain: true}, []string{"another VMPL than 0", "do not fit"}},
		"SNP by VLEK":                {facts{kind: evidence.SNP, gen: now, report: report(3, 0, 1<<2)}, []string{"signed by a VLEK"}},
		"SNP by VLEK with its chain": {facts{kind: evidence.SNP, gen: now, report: report(3, 0, 1<<2), chain: true}, []string{"do not fit"}},
		"SNP for an old broker":      {facts{kind: evidence.SNP, gen: old, report: report(2, 0, 0), chain: true, oldForm: true}, []string{"do not fit", "take the report in a form of their releases"}},
		"TDX":                        {facts{kind: evidence.TDX, gen: now, initdata: true, eventLog: true}, []string{"collateral", "replay", "MRCONFIGID"}},
		"TDX without a log":          {facts{kind: evidence.TDX, gen: now}, []string{"collateral"}},
		"Azure":                      {facts{kind: evidence.AzSNPvTPM, gen: now, oldForm: true, initdata: true}, []string{"the form is not the reason", "vTPM's quote", "PCR 8"}},
		"Azure with an old broker":   {facts{kind: evidence.AzTDXvTPM, gen: old, oldForm: true}, []string{"vTPM's quote"}},
		"sample":                     {facts{kind: evidence.Sample, gen: now}, []string{"takes no sample evidence"}},
		"sample with an old broker":  {facts{kind: evidence.Sample, gen: old}, []string{"takes no sample evidence"}},
	} {
		for _, variant := range []string{"AttestationError", "AttestationFailed"} {
			d := &DeniedError{Variant: variant, at: atAttest}
			cause, next := d.explain(c.facts)
			rest := cause
			for i, want := range append(c.want, "the session expired") {
				_, after, ok := strings.Cut(rest, want)
				if rest = after; !ok || !strings.Contains(cause, fmt.Sprintf("(%d) ", i+1)) || !strings.Contains(next, fmt.Sprintf("(%d) ", i+1)) {
					t.Errorf("%s: %q in its place is not in %q", name, want, cause)
				}
			}
			if strings.Contains(cause, fmt.Sprintf("(%d) ", len(c.want)+2)) {
				t.Errorf("%s: more causes than expected: %q", name, cause)
			}
			for _, r := range evidenceReasons {
				reached[r.cause] = reached[r.cause] || strings.Contains(cause, r.cause) && strings.Contains(next, r.next)
			}
		}
	}
	for _, r := range evidenceReasons {
		if !reached[r.cause] {
			t.Errorf("no case for %q", r.cause)
		}
	}
}

// What the facts are is read off the evidence itself.
func TestFactsOfEvidence(t *testing.T) {
	r := evidence.SNPReport{Version: 3, KeyInfo: 1 << 2}
	table, err := evidence.MarshalCerts([]evidence.Cert{{Type: "VLEK", DER: []byte{0x30, 0}}})
	if err != nil {
		t.Fatal(err)
	}
	f := facts{kind: evidence.SNP}
	f.of(evidence.Evidence{Kind: evidence.SNP, Report: r.Marshal(), Aux: table}, false, true)
	if !f.vlek() || !f.chain || !f.initdata || f.report.Version != 3 {
		t.Errorf("%+v", f)
	}
	f = facts{kind: evidence.TDX}
	f.of(evidence.Evidence{Kind: evidence.TDX, EventLog: []byte{1}}, true, false)
	if f.vlek() || f.chain || !f.eventLog || !f.oldForm {
		t.Errorf("%+v", f)
	}
}

func TestFailuresAreExplained(t *testing.T) {
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	verify := func(err error) error { return &tls.CertificateVerificationError{Err: err} }
	reached := map[string]bool{}
	for _, c := range []struct {
		err  error
		want string
	}{
		{&pinError{[]byte{1}, []byte{2}}, "another key"},
		{verify(x509.CertificateInvalidError{Reason: x509.Expired}), "the host's clock is wrong"},
		{verify(x509.UnknownAuthorityError{}), "give its CA or its SPKI in the manifest"},
		{verify(x509.HostnameError{Certificate: &x509.Certificate{}, Host: "b"}), "another name"},
		{verify(x509.CertificateInvalidError{Reason: x509.NotAuthorizedToSign}), "does not verify"},
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, "does not speak TLS"},
		{fmt.Errorf("remote error: %w", tls.AlertError(116)), "client certificate"},
		{&redirectError{307, "http://elsewhere"}, "the broker's own address"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Name: "b"}}, "cannot be resolved"},
		{dial(syscall.ECONNREFUSED), "nothing listens"},
		{dial(syscall.EHOSTUNREACH), "no way from the guest"},
		{dial(syscall.ENETUNREACH), "no way from the guest"},
		{context.DeadlineExceeded, "did not answer in time"},
		{io.ErrUnexpectedEOF, "in the middle of an answer"},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, "in the middle of an answer"},
		{errTooLarge, "that large"},
		{malformed{errors.New("nonce")}, "not one of the key broker protocol"},
		{statusError(400), "speaks TLS where http was asked"},
		{statusError(429), "limits requests"},
		{statusError(503), "check the gateway's log"},
		{statusError(500), "out of order"},
		{statusError(204), "does not answer with this status"},
	} {
		err := failed("https://b", atAuth, fmt.Errorf("around: %w", c.err))
		e, ok := errors.AsType[*BrokerError](err)
		if !ok || !strings.Contains(e.Cause+e.Next, c.want) || e.Next == "" {
			t.Errorf("%v: want %q", err, c.want)
		}
		if text := err.Error(); !strings.HasPrefix(text, "broker https://b: auth: around: ") || !strings.HasSuffix(text, "; next: "+e.Next) {
			t.Errorf("the error does not tell: %s", text)
		}
		reached[e.Cause] = true
	}
	for _, f := range failures {
		if !reached[f.cause] {
			t.Errorf("no case for %q", f.cause)
		}
	}
	if err := failed("https://b", atAuth, context.Canceled); err.Error() != "broker https://b: auth: context canceled" {
		t.Errorf("%v", err)
	}
}

func FuzzDenied(f *testing.F) {
	for _, v := range []string{"PolicyDeny", "AttestationError", ""} {
		b, err := json.Marshal(map[string]string{"type": errorType + v, "detail": "KBS Client Protocol Version Mismatch: expect =0.2.0 while the request is 0.4.0"})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"type":"` + errorType + `AttestationError","detail":"deserialize Request\u001b"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, at := range []string{atAuth, atAttest, atResource} {
			d := denied("b", "", b)
			d.at = at
			d.Cause, d.Next = d.explain(facts{kind: evidence.SNP, gen: &generations[0]})
			if len(d.Detail) > maxDetail || strings.ContainsAny(d.Error(), "\x1b\r\n") || d.Cause == "" || d.Next == "" {
				t.Errorf("%+v", d)
			}
		}
		s := session{http: &transport{}, gen: &generations[0]}
		for range 4 {
			s.adapt(&answer{status: 401, body: b}, evidence.AzSNPvTPM)
		}
		if s.adapt(&answer{status: 401, body: b}, evidence.AzSNPvTPM) || generationOf(s.gen.version) != s.gen {
			t.Errorf("no end with %q", b)
		}
	})
}
