package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/guestapi"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/registryauth"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// keep gives the broker a resource that its policy releases.
func (f *flow) keep(path, value string) {
	f.Helper()
	if err := f.world.SetKey(path, []byte(value)); err != nil {
		f.Fatal(err)
	}
	f.grants = append(f.grants, path)
}

// seals makes sealed secrets, signed with a key that the broker gives out as default/signer/pub.
func (f *flow) seals() func(path string) string {
	f.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: &priv.PublicKey})
	if err != nil {
		f.Fatal(err)
	}
	f.keep("default/signer/pub", string(jwk))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: priv, KeyID: "kbs:///default/signer/pub"}}, nil)
	if err != nil {
		f.Fatal(err)
	}
	return func(path string) string {
		jws, err := signer.Sign(fmt.Appendf(nil, `{"version":"0.1.0","type":"vault","name":"kbs:///%s","provider":"kbs","provider_settings":{},"annotations":{}}`, path))
		if err != nil {
			f.Fatal(err)
		}
		text, err := jws.CompactSerialize()
		if err != nil {
			f.Fatal(err)
		}
		return "sealed." + text
	}
}

// ask is one request of the workload to the guest API that its sandbox would reach.
func ask(t *testing.T, s workload.Spec, path string) (status int, body string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { s.Services[0].Serve(l); close(done) }()
	resp, err := http.Get("http://" + l.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	l.Close()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestGrants: what the manifest grants reaches the workload, what it does not stays out, and nothing is left afterwards.
func TestGrants(t *testing.T) {
	f := newFlow(t)
	seal := f.seals()
	f.keep("default/secret/env", "the password")
	f.keep("default/secret/file", "the\x00file")
	f.keep("default/data/shared", "for the workload")
	f.edit(`"results": {`, fmt.Sprintf(`"env": {"PASSWORD": %q, "PLAIN": "as it is"}, "files": [{"path": "/run/secrets/token", "value": %q}, {"path": "/etc/plain", "value": "text"}],
		"guest_api": {"resources": ["default/data/shared"], "evidence": true}, "results": {`, seal("default/secret/env"), seal("default/secret/file")))
	f.tamper = func(m *machine) {
		inner := m.runWorkload
		m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) {
			env := strings.Join(s.Env, "\n")
			if !strings.Contains(env, "PASSWORD=the password") || !strings.Contains(env, "PLAIN=as it is") {
				t.Errorf("environment:\n%s", env)
			}
			if len(s.Files) != 2 || string(s.Files[0].Data) != "the\x00file" || string(s.Files[1].Data) != "text" {
				t.Errorf("files %q", s.Files)
			}
			if len(s.Services) != 1 || s.Services[0].Addr != "127.0.0.1:8006" {
				t.Fatalf("services %+v", s.Services)
			}
			for path, want := range map[string]string{
				"/cdh/resource/default/data/shared": "200 for the workload",
				"/cdh/resource/default/secret/env":  "500",
				"/cdh/resource/default/key/algo":    "500",
				"/aa/token?token_type=kbs":          "404",
			} {
				if status, body := ask(t, s, path); !strings.HasPrefix(fmt.Sprintf("%d %s", status, body), want) {
					t.Errorf("%s: %d %q, want %s", path, status, body, want)
				}
			}
			status, body := ask(t, s, "/aa/evidence?runtime_data=hello")
			ev, err := evidence.FromJSON(evidence.SNP, []byte(body))
			if status != 200 || err != nil {
				t.Errorf("evidence: %d, %v", status, err)
			} else if r, err := evidence.ParseSNP(ev.Report); err != nil || r.ReportData != guestapi.ReportData([]byte("hello")) {
				t.Errorf("evidence holds %x, %v", r.ReportData, err)
			}
			return inner(ctx, s)
		}
	}
	f.boot()
	f.ends("", result.OK, true)
	for _, text := range []string{"the password", "for the workload"} {
		if strings.Contains(f.console.String(), text) || strings.Contains(f.log(), text) {
			t.Errorf("%q is in a log", text)
		}
	}
}

// TestToken: a workload that is granted the token has what the broker takes for this machine, out of the one session of
// the boot.
func TestToken(t *testing.T) {
	f := newFlow(t)
	seal := f.seals()
	f.keep("default/secret/env", "the password")
	f.edit(`"results": {`, fmt.Sprintf(`"env": {"PASSWORD": %q}, "guest_api": {"token": true}, "results": {`, seal("default/secret/env")))
	var dev *countedDevice
	f.tamper = func(m *machine) {
		open := m.openTEE
		m.openTEE = func([]tee.Driver) (tee.Device, error) {
			d, err := open(nil)
			dev = &countedDevice{Device: d}
			return dev, err
		}
		inner := m.runWorkload
		m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) {
			var got struct {
				Token string `json:"token"`
				Key   string `json:"tee_keypair"`
			}
			status, body := ask(t, s, "/aa/token?token_type=kbs")
			if err := json.Unmarshal([]byte(body), &got); status != 200 || err != nil {
				t.Fatalf("%d %q: %v", status, body, err)
			}
			if block, _ := pem.Decode([]byte(got.Key)); block == nil || block.Type != "PRIVATE KEY" {
				t.Errorf("the key is no PKCS #8 in PEM")
			}
			m, err := manifest.Parse(f.raw, func(string) bool { return true })
			if err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.Brokers[0].URL+"/kbs/v0/resource/"+demo.AlgorithmKey, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+got.Token)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("the broker answers the token with %s", resp.Status)
			}
			return inner(ctx, s)
		}
	}
	f.boot()
	f.ends("", result.OK, true)
	if dev.asked != 3 {
		t.Errorf("evidence was asked for %d times; want once to bind, once for the broker, once for the receipt", dev.asked)
	}
}

type countedDevice struct {
	tee.Device
	asked int
}

func (d *countedDevice) Evidence(ctx context.Context, data [64]byte) (evidence.Evidence, error) {
	d.asked++
	return d.Device.Evidence(ctx, data)
}

// TestBadGrants: each ends the run before the workload starts, with its cause in the sealed log.
func TestBadGrants(t *testing.T) {
	sealedFile := func(value string) func(*flow) {
		return func(f *flow) {
			f.edit(`"results": {`, fmt.Sprintf(`"files": [{"path": "/run/x", "value": %q}], "results": {`, value))
		}
	}
	for name, c := range map[string]struct {
		set    func(*flow)
		step   string
		reason result.Reason
		log    string
	}{
		"a sealed secret altered": {func(f *flow) {
			v := f.seals()("default/secret/env")
			f.keep("default/secret/env", "x")
			b := []byte(v)
			b[len(b)-10] ^= 1
			sealedFile(string(b))(f)
		}, "attest", result.BadManifest, "sealed secret"},
		"a sealed secret of a stranger": {func(f *flow) {
			f.seals()
			stranger := newFlow(f.T).seals()("default/secret/env")
			sealedFile(stranger)(f)
		}, "attest", result.BadManifest, "sealed secret"},
		"a signer that is not released": {func(f *flow) {
			v := f.seals()("default/secret/env")
			f.grants = nil
			sealedFile(v)(f)
		}, "attest", result.Denied, "PolicyDeny"},
		"a vault that is not released": {func(f *flow) { sealedFile(f.seals()("default/secret/env"))(f) }, "attest", result.Denied, "PolicyDeny"},
		"a zero byte for the environment": {func(f *flow) {
			seal := f.seals()
			f.keep("default/secret/env", "a\x00b")
			f.edit(`"results": {`, fmt.Sprintf(`"env": {"A": %q}, "results": {`, seal("default/secret/env")))
		}, "execute", result.Denied, "zero byte"},
		"a resource that is not there": {func(f *flow) {
			f.grants = append(f.grants, "default/data/none")
			f.edit(`"results": {`, `"guest_api": {"resources": ["default/data/none"]}, "results": {`)
		}, "attest", result.Denied, "the resource is not there"},
		"a policy that rejects": {func(f *flow) {
			f.keep("default/security-policy/test", `{"default": [{"type": "reject"}]}`)
			f.edit(`"results": {`, `"images": {"policy": "default/security-policy/test"}, "results": {`)
		}, "resolve", result.BadImage, "rejected by the image policy"},
		"a policy with a key in a file": {func(f *flow) {
			f.keep("default/security-policy/test", `{"default": [{"type": "sigstoreSigned", "keyPath": "/etc/cosign.pub"}]}`)
			f.edit(`"results": {`, `"images": {"policy": "kbs:///default/security-policy/test"}, "results": {`)
		}, "resolve", result.BadImage, "not supported in this build"},
		"a policy that is none": {func(f *flow) {
			f.keep("default/security-policy/test", `{"default": []}`)
			f.edit(`"results": {`, `"images": {"policy": "default/security-policy/test"}, "results": {`)
		}, "resolve", result.BadImage, "image policy"},
		"a policy that is not released": {func(f *flow) {
			f.edit(`"results": {`, `"images": {"policy": "default/security-policy/test"}, "results": {`)
		}, "resolve", result.Denied, "PolicyDeny"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			c.set(f)
			f.boot()
			f.ends(c.step, c.reason, false)
			if log := f.log(); !strings.Contains(log, c.log) {
				t.Errorf("the sealed log lacks %q:\n%s", c.log, log)
			}
		})
	}
}

// TestPolicyThatAccepts: with it the run goes on.
func TestPolicyThatAccepts(t *testing.T) {
	f := newFlow(t)
	host := strings.Replace(f.world.Registry, "10.0.2.2", "127.0.0.1", 1)
	f.keep("default/security-policy/test", fmt.Sprintf(`{"default": [{"type": "reject"}], "transports": {"docker": {%q: [{"type": "insecureAcceptAnything"}]}}}`, host))
	f.edit(`"results": {`, `"images": {"policy": "default/security-policy/test"}, "results": {`)
	f.boot()
	f.ends("", result.OK, true)
}

// TestRegistryCredentials: they come from the broker before the first image is asked for, and go to their registry only.
func TestRegistryCredentials(t *testing.T) {
	f := newFlow(t)
	host := strings.Replace(f.world.Registry, "10.0.2.2", "127.0.0.1", 1)
	f.keep("default/credential/test", fmt.Sprintf(`{"auths": {%q: {"auth": "YWxpY2U6czNjcmV0"}}}`, host))
	f.edit(`"results": {`, fmt.Sprintf(`"registries": [{"host": %q, "credentials": "default/credential/test"}], "results": {`, host))
	f.tamper = func(m *machine) {
		inner := m.resolve
		m.resolve = func(ctx context.Context, uri string, o image.Options) (*image.Image, error) {
			if o.Login == nil || o.Login.User != "alice" || o.Login.Password != "s3cret" {
				t.Errorf("%s is asked for as %v", uri, o.Login)
			}
			o.Login = nil // the test's registry speaks plain http, to which package image gives no password
			return inner(ctx, uri, o)
		}
	}
	f.boot()
	f.ends("", result.OK, true)
	if log := f.log(); strings.Contains(log, "s3cret") || strings.Contains(log, "YWxpY2U6") {
		t.Errorf("credentials in the log:\n%s", log)
	}
	if b, err := os.ReadFile(filepath.Join(f.opened(), result.BootLogName)); err != nil || len(b) == 0 {
		t.Errorf("log of %d bytes, %v", len(b), err)
	}
}

// TestSecretsAreWiped: what zero leaves is zeros, wherever they are still held.
func TestSecretsAreWiped(t *testing.T) {
	value, resource := []byte("value"), []byte("resource")
	s := secrets{map[string][]byte{"sealed.x": value}, map[string][]byte{"a/b/c": resource}}
	if string(s.open("sealed.x")) != "value" || string(s.open("plain")) != "plain" {
		t.Errorf("opened as %q and %q", s.open("sealed.x"), s.open("plain"))
	}
	s.zero()
	if strings.Trim(string(value)+string(resource), "\x00") != "" || len(s.values)+len(s.resources) != 0 {
		t.Errorf("left: %q %q", value, resource)
	}
	secrets{}.zero()

	// Also when the boot ends between attest and execute.
	login, err := registryauth.Parse([]byte(`{"auths": {"r.example": {"auth": "YWxpY2U6czNjcmV0"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	value = []byte("value")
	m, _, _ := bareMachine()
	boot(t.Context(), m, []step{{"pull", result.BadImage, time.Minute, func(r *run, _ context.Context) error {
		r.secrets = secrets{values: map[string][]byte{"sealed.x": value}}
		r.logins = logins{"r.example": login}
		return errors.New("broken")
	}}})
	if strings.Trim(string(value), "\x00") != "" {
		t.Errorf("left: %q", value)
	}
	if _, _, ok := login.For("r.example/x"); ok {
		t.Error("the credentials of a registry are left")
	}
}
