package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/tee/sample"
)

// serveBroker is the script command `broker LOG ARG…`: it starts ampoule kbs with the arguments on a free port, its
// standard error going to LOG, and sets BROKER. `broker stop` ends it and wants that it ends well.
func serveBroker() func(ts *testscript.TestScript, neg bool, args []string) {
	var mu sync.Mutex // scripts run at the same time
	type process struct {
		*os.Process
		exit chan error
	}
	running := map[string]process{}
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) == 0 {
			ts.Fatalf("usage: broker LOG ARG… | broker stop")
		}
		mu.Lock()
		defer mu.Unlock()
		work := ts.Getenv("WORK")
		if args[0] == "stop" {
			ts.Check(running[work].Signal(syscall.SIGTERM))
			ts.Check(<-running[work].exit)
			delete(running, work)
			return
		}
		program := filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "ampoule")
		cmd := exec.Command(program, append([]string{"kbs", "--listen", "127.0.0.1:0"}, args[1:]...)...)
		cmd.Dir, cmd.Env = ts.Getenv("WORK"), []string{"PATH=" + ts.Getenv("PATH")}
		log, err := os.Create(ts.MkAbs(args[0]))
		ts.Check(err)
		defer log.Close()
		cmd.Stderr = log
		ts.Check(cmd.Start())
		ts.Defer(func() { cmd.Process.Kill() })
		p := process{cmd.Process, make(chan error, 1)}
		go func() { p.exit <- cmd.Wait() }()
		running[work] = p
		for range 600 {
			if m := serving.FindStringSubmatch(ts.ReadFile(args[0])); m != nil {
				ts.Setenv("BROKER", m[1])
				return
			}
			select {
			case err := <-p.exit:
				ts.Fatalf("the broker has ended (%v): %s", err, ts.ReadFile(args[0]))
			case <-time.After(50 * time.Millisecond):
			}
		}
		ts.Fatalf("the broker does not serve: %s", ts.ReadFile(args[0]))
	}
}

var serving = regexp.MustCompile(`serving \S+ on (https?://\S+)\n`)

// verbRun runs a verb in this process.
func verbRun(t *testing.T, in string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := kbsVerb(t.Context(), args, stdio{strings.NewReader(in), &out, io.Discard})
	return out.String(), err
}

// From nothing to a key in a guest: a broker with its own certificate, whose key the guest pins, resources and policy
// uploaded, resources sealed on the disk, a decision in the audit log.
func TestBrokerEndToEnd(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("identity"), []byte(id.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := verbRun(t, "", "keygen", "--out", in("admin")); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- kbsVerb(ctx, []string{"--dir", in("broker"), "--listen", "127.0.0.1:0", "--allow-sample", "--admin-key", in("admin.pub"),
			"--identity", in("identity"), "--audit", in("audit")}, stdio{nil, io.Discard, w})
		w.CloseWithError(errors.New("the broker has ended"))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	var said []byte
	for buf := make([]byte, 4096); serving.FindSubmatch(said) == nil; {
		n, err := r.Read(buf)
		if said = append(said, buf[:n]...); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
	}
	go io.Copy(io.Discard, r)
	url := string(serving.FindSubmatch(said)[1])
	spki, err := hex.DecodeString(string(regexp.MustCompile(`spki ([0-9a-f]{64})`).FindSubmatch(said)[1]))
	if err != nil {
		t.Fatal(err)
	}

	const path = "default/key/algo-key"
	secret := strings.Repeat("k", 32)
	admin := []string{"--url", url, "--ca", in("broker/tls/cert.pem"), "--key", in("admin")}
	verb := func(stdin, name string, args ...string) {
		t.Helper()
		if _, err := verbRun(t, stdin, append(append([]string{name}, admin...), args...)...); err != nil {
			t.Fatal(err)
		}
	}
	fetch := func() (string, error) {
		t.Helper()
		dev, err := sample.Driver.Open()
		if err != nil {
			t.Fatal(err)
		}
		grant, err := kbs.Exchange(t.Context(), []kbs.Broker{{URL: url, SPKI: spki}}, dev, nil, []kbs.Want{{Broker: url, Path: path}})
		if err != nil {
			return "", err
		}
		defer grant.Zero()
		return string(grant.Key(url, path)), nil
	}
	denied := func() {
		t.Helper()
		_, err := fetch()
		if d, ok := errors.AsType[*kbs.DeniedError](err); !ok || d.Variant != "PolicyDeny" {
			t.Fatalf("%v, want a denial by policy", err)
		}
	}

	verb(secret, "put", path, "-")
	denied() // no policy at all
	verb("package policy\nallow if not input.submods.cpu0[\"ear.veraison.annotated-evidence\"].sample\n", "policy", "-")
	denied()
	verb("package policy\nallow if data[\"resource-path\"] == [\"default\", \"key\", \"algo-key\"]\n", "policy", "-")
	if got, err := fetch(); err != nil || got != secret {
		t.Fatalf("%q, %v", got, err)
	}
	if err := os.WriteFile(in("broker/policy.json"), []byte(`{}`), 0o600); err != nil {
		t.Fatal(err)
	}
	denied() // both must allow
	if err := os.Remove(in("broker/policy.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("broker/policies/resource.rego"), []byte("package policy\nallow if {"), 0o600); err != nil {
		t.Fatal(err)
	}
	denied() // one that cannot be read denies

	// What a guest is worth, by an attestation policy and reference values.
	verb("package policy\ndefault executables := 33\nexecutables := 3 if input.sample.launch_digest in query_reference_value(\"launch_digest\")\n", "policy", "--attestation", "default_cpu", "-")
	verb("package policy\nallow if input.submods.cpu0[\"ear.status\"] == \"affirming\"\n", "policy", "-")
	denied() // no reference value yet
	verb(`{"launch_digest": ["another"]}`, "reference", "-")
	denied()
	verb(`{"launch_digest": ["abcde"]}`, "reference", "-")
	if got, err := fetch(); err != nil || got != secret {
		t.Fatalf("%q, %v", got, err)
	}
	if err := os.WriteFile(in("broker/policies/attestation/default_cpu.rego"), []byte("package policy\nexecutables := \"3\""), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(); err == nil || !strings.Contains(err.Error(), "AttestationError") {
		t.Fatalf("a policy that gives no number: %v", err)
	}

	b, err := os.ReadFile(in("audit"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range bytes.Lines(b) {
		d, err := kbsserver.ParseDecision(line)
		if err != nil {
			t.Fatal(err)
		}
		if d.Resource != "" {
			got = append(got, d.Decision+" "+d.Actual)
		}
	}
	want := []string{"deny ", "deny line 2: not input.", "allow ", "deny ", "deny ", "deny line 2: input.", "deny line 2: input.", "allow "}
	if len(got) != len(want) {
		t.Fatalf("audit: %q", got)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("audit line %d: %q, want %q", i, got[i], want[i])
		}
	}
	if err := filepath.WalkDir(in("broker"), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s holds the key", p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	verb("", "delete", path)
	if _, err := verbRun(t, "", append([]string{"delete"}, append(admin, path)...)...); err == nil || !strings.Contains(err.Error(), "PluginInternalError") {
		t.Errorf("deleted twice: %v", err)
	}
}

func TestDevelopmentCertificate(t *testing.T) {
	cert, key := filepath.Join(t.TempDir(), "tls/cert.pem"), ""
	key = filepath.Join(filepath.Dir(cert), "key.pem")
	read := func() *x509.Certificate {
		t.Helper()
		b, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(b)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	now := time.Now()
	check := func(host string, now time.Time) *x509.Certificate {
		t.Helper()
		if err := developmentCert(cert, key, host, now); err != nil {
			t.Fatal(err)
		}
		c := read()
		pool := x509.NewCertPool()
		pool.AddCert(c)
		for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
			if _, err := c.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, CurrentTime: now}); err != nil {
				t.Error(err)
			}
		}
		return c
	}
	first := check("127.0.0.1", now)
	pin := func(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }
	if again := check("", now.Add(time.Hour)); !again.Equal(first) {
		t.Error("made anew without a reason")
	}
	named := check("kbs.example", now)
	if named.Equal(first) || named.VerifyHostname("kbs.example") != nil || pin(named) != pin(first) {
		t.Error("another host: want another certificate with the same key")
	}
	old := check("kbs.example", named.NotAfter.Add(-time.Hour))
	if old.Equal(named) || pin(old) != pin(first) {
		t.Error("nearly over: want another certificate with the same key")
	}
	if i, err := os.Stat(key); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", i.Mode(), err)
	}
	if err := os.WriteFile(key, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := developmentCert(cert, key, "", now); err == nil {
		t.Error("a broken key was taken")
	}
}

func TestTokenOverPlainHTTP(t *testing.T) {
	for url, ok := range map[string]bool{"https://kbs.example": true, "http://127.0.0.1:8080": true, "http://[::1]:8080": true, "http://localhost": true,
		"http://kbs.example": false, "http://192.0.2.1:8080": false, "ftp://localhost": false, "https://": false, "https://u:p@host": false, "https://host?x": false} {
		a := administrator{url: url}
		if _, err := a.base(); (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
	a := administrator{url: "http://192.0.2.1:8080/", http: true}
	if base, err := a.base(); err != nil || base != "http://192.0.2.1:8080" {
		t.Error(base, err)
	}
}
