package manifest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func everything(string) bool { return true }

func only(names ...string) func(string) bool {
	return func(name string) bool { return strings.Contains(" "+strings.Join(names, " ")+" ", " "+name+" ") }
}

func load(t testing.TB, name string) []byte {
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := json.Marshal(string(certificate(t)))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(b, []byte(`"@CA@"`), ca)
}

// certificate is a self-signed one of no meaning.
func certificate(t testing.TB) []byte {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<33, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, pub, priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func TestParseReadsAllSpellings(t *testing.T) {
	defaults := Manifest{
		Logs:    "sealed",
		Results: Results{Path: "/cocos/results", LimitBytes: DefaultLimit, Sinks: []Sink{{Type: VsockSink, Deadline: sinkDeadline}}},
	}
	remote, source, computation := defaults, defaults, defaults

	remote.Spelling, remote.ComputationID = Remote, "1"
	remote.Algorithm = Resource{Type: "oci-image", URI: "docker://localhost:5000/encrypted-lin-reg:v1.0", Encrypted: true, KeyPath: "default/key/algo-key", Broker: "http://192.168.100.15:8080"}
	remote.Datasets = []Resource{{Type: "oci-image", URI: "docker://localhost:5000/encrypted-iris:v1.0", Encrypted: true, KeyPath: "default/key/dataset-key", Broker: "http://192.168.100.15:8080"}}
	remote.Brokers = []Broker{{URL: "http://192.168.100.15:8080"}}

	source.Spelling, source.ComputationID = Remote, "c-2"
	source.Algorithm = Resource{Type: "oci-image", URI: "docker://registry.example:5000/team/algo:v1", Encrypted: true, Broker: "https://kbs-one.example"}
	source.Datasets = []Resource{
		{Type: "oci-image", URI: "docker://registry.example:5000/team/data@sha256:" + strings.Repeat("1", 64), Encrypted: true, KeyPath: "default/key/d", Broker: "http://kbs-two.example:8080", Filename: "iris.csv"},
		{Type: "oci-image", URI: "docker://registry.example:5000/team/plain:v1", Filename: "plain.csv"},
	}
	source.Brokers = []Broker{{URL: "https://kbs-one.example"}, {URL: "http://kbs-two.example:8080"}}

	computation.Spelling, computation.ComputationID = Computation, "1"
	computation.Algorithm = Resource{Type: "oci-image", URI: "docker://registry.example/algo:v1"}
	computation.Workload.Kind = "oci" // Cocos' docker
	computation.Workload.Args = []string{"--epochs", "7"}
	computation.Datasets = []Resource{{Type: "oci-image", URI: "docker://registry.example/data:v1", Encrypted: true, KeyPath: "default/key/d", Broker: "http://kbs.example:8080", Filename: "iris.csv",
		SHA3_256: unhex("0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fff")}}
	computation.Brokers = []Broker{{URL: "http://kbs.example:8080"}}
	computation.Results.Recipients = []string{"-----BEGIN PUBLIC KEY-----\nMCowBQ==\n-----END PUBLIC KEY-----\n"}

	for name, want := range map[string]Manifest{"remote.json": remote, "remote-source.json": source, "computation.json": computation} {
		t.Run(name, func(t *testing.T) {
			raw := load(t, name)
			m, err := Parse(raw, only("tag", "http"))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&want, m, cmpopts.IgnoreUnexported(Manifest{})); d != "" {
				t.Error(d)
			}
			if !bytes.Equal(m.Raw(), raw) || m.SHA384() != sha512.Sum384(raw) {
				t.Error("Raw or SHA384 are not of the exact bytes")
			}
		})
	}
}

func TestParseReadsOwnSpelling(t *testing.T) {
	m, err := Parse(load(t, "own.json"), only("http"))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Registries) != 1 || !bytes.HasPrefix(m.Registries[0].CA, []byte("-----BEGIN")) {
		t.Fatalf("registries: %+v", m.Registries)
	}
	m.Registries[0].CA = nil
	want := &Manifest{
		Spelling: Own, ComputationID: "iris-fit",
		Algorithm: Resource{Type: "oci-image", URI: "docker://registry.example/algo@sha256:" + strings.Repeat("2", 64), Encrypted: true, KeyPath: "default/key/algo-key", Broker: "https://kbs.example"},
		Datasets: []Resource{{Type: "oci-image", URI: "docker://[::1]:5000/data:v1@sha256:" + strings.Repeat("3", 64), Filename: "iris.csv",
			SHA256: unhex(strings.Repeat("4", 64)), SHA3_256: unhex(strings.Repeat("5", 64))}},
		Workload:   Workload{Kind: "oci", Args: []string{"--epochs", "7"}, Env: map[string]string{"SEED": "1", "seed": "2", "EMPTY": ""}, User: "nobody:nogroup", Cwd: "/cocos"},
		Resources:  Resources{MemoryBytes: 1 << 30, PIDs: 64, DiskBytes: 64 << 20, InputBytes: 32 << 20, CPUs: 2, Deadline: 10 * time.Minute, Grace: 30 * time.Second},
		Results:    Results{Path: "/cocos/results", LimitBytes: 1 << 20, Recipients: []string{"age1qqqq", "ssh-ed25519 AAAA"}, Sinks: []Sink{{Type: VsockSink, Deadline: sinkDeadline}}},
		Brokers:    []Broker{{URL: "https://kbs.example", SPKI: unhex(strings.Repeat("6", 64))}, {URL: "http://10.0.2.2:8080"}},
		Registries: []Registry{{Host: "registry.example"}},
		Logs:       "host",
	}
	if d := cmp.Diff(want, m, cmpopts.IgnoreUnexported(Manifest{})); d != "" {
		t.Error(d)
	}
}

// What the remote spelling says is said the same in Ampoule's own.
func TestOwnSpellingIsASuperset(t *testing.T) {
	raw := load(t, "remote.json")
	want, err := Parse(raw, everything)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(bytes.Replace(raw, []byte("{"), []byte(`{"version": 1,`), 1), everything)
	if err != nil {
		t.Fatal(err)
	}
	got.Spelling, want.Workload.Kind = want.Spelling, "oci" // Cocos' default depends on the image
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Manifest{})); d != "" {
		t.Error(d)
	}
}

func TestNoArgumentsAreNotTheImages(t *testing.T) {
	for raw, want := range map[string]bool{own(""): true, own(`,"args":[]`): false} {
		m, err := Parse([]byte(raw), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Workload.Args) != 0 || (m.Workload.Args == nil) != want {
			t.Errorf("%s: args %#v", raw, m.Workload.Args)
		}
	}
}

func TestParseRefusesWhatTheImageDoesNotAllow(t *testing.T) {
	raw := load(t, "remote.json")
	for name, c := range map[string]struct {
		allow  func(string) bool
		n      int
		expect string
	}{
		"nothing allowed": {nil, 4, "datasets[0].uri: \"docker://localhost:5000/encrypted-iris:v1.0\" names no digest; run `ampoule manifest pin`"},
		"tags allowed":    {only("tag"), 2, "algorithm.kbs: http://192.168.100.15:8080: this image allows no key broker over plain http; want https"},
		"http allowed":    {only("http"), 2, "algorithm.uri: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(raw, c.allow)
			p, ok := err.(Problems)
			if !ok || len(p) != c.n || !strings.Contains(err.Error(), c.expect) {
				t.Errorf("%d problems, want %d with %q:\n%v", len(p), c.n, c.expect, err)
			}
		})
	}
}
