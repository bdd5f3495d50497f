package kbsserver_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
)

func TestAudit(t *testing.T) {
	var out syncBuffer
	at := time.Now().UTC().Truncate(time.Second)
	r := newRig(t, func(c *kbsserver.Config) {
		c.Audit, c.Now = &out, func() time.Time { return at }
	})
	url := r.listen(t)
	if _, err := r.exchange(t, url, algoKey); err != nil {
		t.Fatal(err)
	}
	_, err := r.exchange(t, url, "default/key/none")
	denied(t, err, "PluginInternalError", "default/key/none")
	_, err = r.exchange(t, url, "other/key/a")
	denied(t, err, "PolicyDeny", "other/key/a")
	r.guest.change = func(r *evidence.SNPReport) { r.Measurement[0] = 9 }
	_, err = r.exchange(t, url, algoKey)
	denied(t, err, "PolicyDeny", algoKey)
	r.guest.change = func(r *evidence.SNPReport) { r.HostData = [32]byte{} }
	_, err = r.exchange(t, url, algoKey)
	denied(t, err, "AttestationError", "")
	g := r.byHand(t, url, "0.4.0", "P-256")
	g.tee = "sgx"
	if ref := g.auth(t); ref == nil {
		t.Error("sgx is taken")
	}
	// Not a decision: nothing was asked of evidence or policy.
	g.do(t, "GET", "resource/"+algoKey, nil, "")
	g.do(t, "POST", "attest", nil, "")

	digest := fmt.Sprintf("%x", sha256.Sum256(initdata))
	other := evidence.Measurement{9, 2, 3}
	line := func(session int, rest string) string {
		s := ""
		if session > 0 {
			s = fmt.Sprintf("S%d", session)
		}
		return fmt.Sprintf(`{"time":"%s","session":"%s","tee":"snp",%s}`, at.Format(time.RFC3339), s, rest)
	}
	want := []string{
		line(1, `"decision":"accepted"`),
		line(1, `"resource":"default/key/algo-key","decision":"allow"`),
		line(2, `"decision":"accepted"`),
		line(2, `"resource":"default/key/none","decision":"allow","cause":"not released: statat default/key/none: no such file or directory"`),
		line(3, `"decision":"accepted"`),
		line(3, `"resource":"other/key/a","decision":"deny","claim":"resource","expected":"a rule that matches","actual":"other/key/a"`),
		line(4, `"decision":"accepted"`),
		line(4, `"resource":"default/key/algo-key","decision":"deny","claim":"measurement","expected":"`+measurement.String()+`","actual":"`+other.String()+`"`),
		line(5, `"decision":"refused","claim":"init_data","expected":"`+digest+`","actual":"nothing: HOST_DATA is zero","cause":"init_data: is nothing: HOST_DATA is zero, want `+digest+`"`),
		strings.Replace(line(0, `"decision":"refused","claim":"tee","expected":"snp, tdx or their Azure kinds; sample where it is allowed","actual":"sgx","cause":"tee: is sgx, want snp, tdx or their Azure kinds; sample where it is allowed"`), `"snp"`, `"sgx"`, 1),
	}
	got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	sessions := map[string]string{}
	for i, l := range got {
		d, err := kbsserver.ParseDecision([]byte(l))
		if err != nil {
			t.Fatalf("%s: %v", l, err)
		}
		if d.Session == "" {
			continue
		}
		if len(d.Session) != 16 {
			t.Errorf("session %q: want 8 bytes in hex", d.Session)
		}
		if sessions[d.Session] == "" {
			sessions[d.Session] = fmt.Sprintf("S%d", len(sessions)+1)
		}
		got[i] = strings.Replace(l, d.Session, sessions[d.Session], 1)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// What a log names is the session, not what would let its reader speak as the guest.
func TestAuditHasNoCredentials(t *testing.T) {
	var out syncBuffer
	r := newRig(t, func(c *kbsserver.Config) { c.Audit = &out })
	g := r.byHand(t, r.listen(t), "0.4.0", "P-256")
	if ref := g.auth(t); ref != nil {
		t.Fatal(ref)
	}
	if ref := g.attest(t, g.body(t)); ref != nil {
		t.Fatal(ref)
	}
	if _, ref := g.get(t, algoKey, ""); ref != nil {
		t.Fatal(ref)
	}
	for _, secret := range []string{g.cookie.Value, g.token} {
		if strings.Contains(out.String()+r.log.String(), secret) {
			t.Errorf("%s is logged:\n%s\n%s", secret, out.String(), r.log)
		}
	}
}

func TestAuditLinesAreBounded(t *testing.T) {
	var out syncBuffer
	r := newRig(t, func(c *kbsserver.Config) { c.Audit = &out })
	var many []string
	for i := range 5000 {
		many = append(many, fmt.Sprintf(`"%096x"`, i+1))
	}
	r.policyText(t, `{"default/key/*":{"measurements":[`+strings.Join(many, ",")+`],"init_data":[]}}`)
	_, err := r.exchange(t, r.listen(t), algoKey)
	denied(t, err, "PolicyDeny", algoKey)
	lines := bytes.Split(bytes.TrimSpace([]byte(out.String())), []byte("\n"))
	d, err := kbsserver.ParseDecision(lines[len(lines)-1])
	if err != nil || d.Actual != measurement.String() || !strings.HasSuffix(d.Expected, "…") {
		t.Errorf("%+v, %v", d, err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestAnAuditLogThatCannotBeWritten(t *testing.T) {
	r := newRig(t, func(c *kbsserver.Config) { c.Audit = full{} })
	if _, err := r.exchange(t, r.listen(t), algoKey); err != nil {
		t.Error(err)
	}
	if !strings.Contains(r.log.String(), "no space left") {
		t.Errorf("nobody is told:\n%s", r.log)
	}
}

func TestParseDecision(t *testing.T) {
	const good = `{"time":"2026-01-02T03:04:05Z","session":"","tee":"snp","decision":"refused"}`
	if _, err := kbsserver.ParseDecision([]byte(good + "\n")); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]string{
		"nothing":                 "",
		"no time":                 `{"session":"","tee":"snp","decision":"refused"}`,
		"no date":                 strings.Replace(good, "2026-01-02T03:04:05Z", "yesterday", 1),
		"a further member":        strings.Replace(good, "}", `,"x":1}`, 1),
		"a member in capitals":    strings.Replace(good, `"tee"`, `"TEE"`, 1),
		"a member twice":          strings.Replace(good, "}", `,"tee":"tdx"}`, 1),
		"two lines":               good + "\n" + good,
		"another decision":        strings.Replace(good, "refused", "maybe", 1),
		"allow without resource":  strings.Replace(good, "refused", "allow", 1),
		"accepted, of a resource": strings.Replace(good, `"refused"`, `"accepted","resource":"a/b/c"`, 1),
		"a number for text":       strings.Replace(good, `"snp"`, `1`, 1),
		"a long line":             good + strings.Repeat(" ", 64<<10),
	} {
		if d, err := kbsserver.ParseDecision([]byte(bad)); err == nil || d != (kbsserver.Decision{}) {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
}

func FuzzDecision(f *testing.F) {
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","session":"ab","tee":"snp","resource":"a/b/c","decision":"deny","claim":"measurement","expected":"a","actual":"b","cause":"c"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := kbsserver.ParseDecision(b)
		if err == nil && (d.Decision == "" || d.Time.IsZero() && !bytes.Contains(b, []byte("0001"))) {
			t.Errorf("%q is read as %+v", b, d)
		}
	})
}
