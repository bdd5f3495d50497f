package kbsserver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	sevtest "github.com/google/go-sev-guest/testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// These tests run the guest's client against the broker, with nothing between them but a socket.

const (
	algoKey    = "default/key/algo-key"
	datasetKey = "default/key/dataset-key"
)

var initdata = []byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"ampoule.json\" = \"{}\"\n")

var testSigner = sync.OnceValues(func() (*sevtest.AmdSigner, error) {
	return sevtest.DefaultTestOnlyCertChain("Milan-B1", time.Now().Add(-time.Hour))
})

// guest is a tee.Device that signs with the test chain.
type guest struct {
	signer *sevtest.AmdSigner
	change func(r *evidence.SNPReport)
	asked  atomic.Int32
}

func (g *guest) Kind() evidence.Kind { return evidence.SNP }

func (g *guest) Evidence(_ context.Context, data [64]byte) (evidence.Evidence, error) {
	g.asked.Add(1)
	r := evidence.SNPReport{Version: 3, Policy: 0x30000, SigAlgo: 1, CPUFamily: 0x19, CPUModel: 1, CPUStepping: 1,
		ReportData: data, Measurement: measurement, HostData: sha256.Sum256(initdata)}
	if g.change != nil {
		g.change(&r)
	}
	raw := r.Marshal()
	R, S, err := g.signer.Sign(abi.SignedComponent(raw))
	if err != nil {
		return evidence.Evidence{}, err
	}
	if err := abi.SetSignature(R, S, raw); err != nil {
		return evidence.Evidence{}, err
	}
	certs, err := g.signer.CertTableBytes()
	return evidence.Evidence{Kind: evidence.SNP, Report: raw, Aux: certs}, err
}

var measurement = evidence.Measurement{1, 2, 3}

// rig is a broker with its directory, a guest, and the log.
type rig struct {
	dir    string
	server *kbsserver.Server
	guest  *guest
	log    *syncBuffer
	root   verify.Root
	chip   *psp.PSP // of newTDX
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newRig(t testing.TB, change func(c *kbsserver.Config)) *rig {
	t.Helper()
	s, err := testSigner()
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, der := range [][]byte{s.Ask.Raw, s.Ark.Raw} {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	root, err := verify.LoadRoot(chain)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{dir: t.TempDir(), guest: &guest{signer: s}, log: new(syncBuffer), root: root}
	r.key(t, algoKey, bytes.Repeat([]byte{7}, 32))
	r.key(t, datasetKey, bytes.Repeat([]byte{8}, 32))
	r.policy(t, kbsserver.Policy{"default/key/*": {
		Measurements: []evidence.Measurement{measurement}, InitData: []kbsserver.Digest{sha256.Sum256(initdata)},
	}})
	conf := kbsserver.Config{Dir: r.dir, Roots: []verify.Root{root}, Log: slog.New(slog.NewTextHandler(r.log, nil))}
	if change != nil {
		change(&conf)
	}
	if r.server, err = kbsserver.New(conf); err != nil {
		t.Fatal(err)
	}
	return r
}

// testChip is made once: its keys take seconds.
var testChip = sync.OnceValues(func() (*psp.PSP, error) {
	dir, err := os.MkdirTemp("", "psp")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return psp.New(dir)
})

// newTDX is newRig with a simulated TDX module, which the broker trusts.
func newTDX(t testing.TB, change func(c *kbsserver.Config)) *rig {
	t.Helper()
	chip, err := testChip()
	if err != nil {
		t.Fatal(err)
	}
	intel, err := verify.LoadIntelRoot(chip.TDXRootPEM())
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *kbsserver.Config) {
		c.Intel = intel
		change(c)
	})
	r.chip = chip
	return r
}

func (r *rig) key(t testing.TB, name string, key []byte) {
	t.Helper()
	file := filepath.Join(r.dir, "keys", name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, key, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) policy(t testing.TB, p kbsserver.Policy) {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	r.policyText(t, string(b))
}

func (r *rig) policyText(t testing.TB, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, "policy.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// exchange asks one broker for the given paths.
func (r *rig) exchange(t testing.TB, url string, paths ...string) (*kbs.Grant, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var wants []kbs.Want
	for _, p := range paths {
		wants = append(wants, kbs.Want{Broker: url, Path: p})
	}
	return kbs.Exchange(ctx, []kbs.Broker{{URL: url, AllowHTTP: true}}, r.guest, initdata, wants)
}

func (r *rig) listen(t testing.TB) string {
	t.Helper()
	ts := httptest.NewServer(r.server)
	t.Cleanup(ts.Close)
	return ts.URL
}

func denied(t *testing.T, err error, variant, path string) *kbs.DeniedError {
	t.Helper()
	d, ok := errors.AsType[*kbs.DeniedError](err)
	if !ok || d.Variant != variant || d.Path != path {
		t.Fatalf("error %v, want %s for %q", err, variant, path)
	}
	return d
}
