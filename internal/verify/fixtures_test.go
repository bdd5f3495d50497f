package verify

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// byPattern are recorded files whose names tests put together.
var byPattern = map[string]string{
	"README.md":            "says where the others are from",
	"tpm-quote.sig":        "its key is not recorded, and tpm-quote.msg is refused for its PCRs",
	"initdata.toml":        "TestWrapVectors reads the .toml beside each .json",
	"initdata-sha256.toml": "the same",
}

// TestEveryRecordIsRead: a recorded file or a vector that no test names proves nothing, and would go unnoticed.
func TestEveryRecordIsRead(t *testing.T) {
	const shared, root = "../../../shared/wire", "../.."
	if _, err := os.Stat(shared); err != nil {
		t.Skip("no vectors here: ../shared is absent")
	}
	var tests strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "verify/fixtures_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		tests.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	tests.WriteString(recordsHere)
	n := 0
	for _, dir := range []string{"vectors/kbs", "fixtures"} {
		err := filepath.WalkDir(filepath.Join(shared, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			n++
			name := filepath.Base(path)
			if byPattern[name] == "" && !strings.Contains(tests.String(), strings.TrimPrefix(name, "trustee-")) {
				t.Errorf("%s: no test reads it", path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n < 60 {
		t.Errorf("only %d files were found", n)
	}
}

// recordsHere are those that the tests of this file read.
const recordsHere = "akpub.pem certs.pem ask_ark_milan-go-sev-guest.pem ask_ark_milanvlek-go-sev-guest.pem"

// TestRecordedQuoteSignature: what a real vTPM signed holds under its key, by the check that evidence goes through, up to
// the PCRs, which this record has in a form of its own.
func TestRecordedQuoteSignature(t *testing.T) {
	block, _ := pem.Decode(fixture(t, "hcl/akpub.pem"))
	if block == nil {
		t.Fatal("akpub.pem: no PEM")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	// Two byte strings with their lengths in front, then the PCRs.
	b := fixture(t, "hcl/quote.bin")
	next := func() []byte {
		n := binary.LittleEndian.Uint64(b)
		out := b[8 : 8+n]
		b = b[8+n:]
		return out
	}
	q := evidence.TPMQuote{Signature: next(), Message: next()}
	if _, err := checkTPM(&q, key.(*rsa.PublicKey)); err == nil || !strings.Contains(err.Error(), "the PCRs have") {
		t.Errorf("without its PCRs: %v", err)
	}
	for i := range q.Message {
		forged := evidence.TPMQuote{Signature: q.Signature, Message: bytes.Clone(q.Message)}
		forged.Message[i] ^= 1
		if _, err := checkTPM(&forged, key.(*rsa.PublicKey)); err == nil || !strings.Contains(err.Error(), "not signed") {
			t.Fatalf("byte %d may change: %v", i, err)
		}
	}
	r, err := evidence.ParseHCL(fixture(t, "hcl/hcl-report-snp.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := checkTPM(&q, r.AK); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("under the key of another machine: %v", err)
	}
}

// TestRecordedRoots: what others hold for AMD's is what this package has.
func TestRecordedRoots(t *testing.T) {
	own := map[string]bool{}
	for _, name := range []string{"milan_ask_ark_asvk.pem", "genoa_ask_ark_asvk.pem", "turin_ask_ark_asvk.pem"} {
		for _, der := range pemBlocks(fixture(t, "snp/"+name)) {
			own[string(der)] = true
		}
	}
	for name, leaves := range map[string]int{"snp/ask_ark_milan-go-sev-guest.pem": 0, "snp/ask_ark_milanvlek-go-sev-guest.pem": 0, "hcl/certs.pem": 1} {
		others := 0
		blocks := pemBlocks(fixture(t, name))
		if len(blocks) < 2 {
			t.Fatalf("%s: %d certificates", name, len(blocks))
		}
		for _, der := range blocks {
			if !own[string(der)] {
				others++
			}
		}
		if others != leaves {
			t.Errorf("%s: %d of %d certificates are not among the recorded roots, want %d", name, others, len(blocks), leaves)
		}
		root, err := LoadRoot(fixture(t, name))
		if leaves == 0 && (err != nil || root.Line() != "Milan") {
			t.Errorf("%s: %s, %v", name, root.Line(), err)
		}
		if leaves > 0 && err == nil {
			t.Errorf("%s: a chip's certificate passes for a root", name)
		}
	}
}

func pemBlocks(b []byte) (ders [][]byte) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(bytes.TrimSpace(b)); block == nil {
			return ders
		}
		ders = append(ders, block.Bytes)
	}
}
