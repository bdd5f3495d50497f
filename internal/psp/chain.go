package psp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	sevtest "github.com/google/go-sev-guest/testing"
)

// chainFile holds the ARK, ASK and VCEK certificates and the private key of the VCEK, as PEM in this order. The keys of
// ARK and ASK are thrown away once they have signed: nothing needs a second chip.
const chainFile = "simulated-psp.pem"

// maxChainFile bounds it in bytes: two RSA-4096 certificates, one smaller, one key take 6 KiB.
const maxChainFile = 64 << 10

// New opens the chip that is kept in dir, or makes one there (two RSA-4096 keys: seconds). Processes that open the same
// dir get the same chip, also when they start at once.
func New(dir string) (*PSP, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("simulated PSP: %w", err)
	}
	path := filepath.Join(dir, chainFile)
	p, err := load(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(dir, path); err != nil {
			return nil, fmt.Errorf("make simulated PSP %s: %w", path, err)
		}
		p, err = load(path)
	}
	if err != nil {
		return nil, fmt.Errorf("simulated PSP %s: %w; remove the file to get a new chip", path, err)
	}
	return p, nil
}

// create writes a new chain beside path and links it there, so that whoever comes second loads the first one's.
func create(dir, path string) (err error) {
	chain, err := newChain()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, chainFile+".tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(chain)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// building serialises newChain: the library draws salts from a generator that is not safe for concurrent use. It is
// weak as well, which is no matter for salts; every key comes from crypto/rand.
var building sync.Mutex

func newChain() ([]byte, error) {
	ark, err1 := rsa.GenerateKey(rand.Reader, 4096)
	ask, err2 := rsa.GenerateKey(rand.Reader, 4096)
	key, err3 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	chipID := make([]byte, abi.ChipIDSize)
	rand.Read(chipID)

	building.Lock()
	defer building.Unlock()
	made := time.Now().Add(-time.Hour).Truncate(time.Second) // the guest's clock may be a little behind
	b := sevtest.AmdSignerBuilder{
		// The builder insists on an ASVK; nothing of ours carries it.
		Keys:             &sevtest.AmdKeys{Ark: ark, Ask: ask, Asvk: ask, Vcek: key},
		ProductName:      productName,
		ArkCreationTime:  made,
		AskCreationTime:  made,
		AsvkCreationTime: made,
		VcekCreationTime: made,
		VcekCustom:       sevtest.CertOverride{Extensions: sevtest.CustomExtensions(tcbParts(), chipID, "", productName)},
	}
	s, err := b.TestOnlyCertChain()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, c := range []*x509.Certificate{s.Ark, s.Ask, s.Vcek} {
		out = append(out, certPEM(c)...)
	}
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...), nil
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func load(path string) (*PSP, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxChainFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxChainFile {
		return nil, fmt.Errorf("more than %d bytes", maxChainFile)
	}
	return parseChain(b)
}

func parseChain(b []byte) (*PSP, error) {
	p := new(PSP)
	for _, c := range []**x509.Certificate{&p.ark, &p.ask, &p.vcek} {
		block, rest := pem.Decode(b)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("not three certificates and a key")
		}
		var err error
		if *c, err = x509.ParseCertificate(block.Bytes); err != nil {
			return nil, err
		}
		b = rest
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no private key behind the certificates")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	var ok bool
	if p.key, ok = key.(*ecdsa.PrivateKey); !ok || !p.key.PublicKey.Equal(p.vcek.PublicKey) {
		return nil, errors.New("the private key is not that of the VCEK certificate")
	}
	exts, err := kds.VcekCertificateExtensions(p.vcek)
	if err != nil {
		return nil, fmt.Errorf("VCEK: %w", err)
	}
	if parts := kds.DecomposeTCBVersion(exts.TCBVersion); parts != tcbParts() || len(exts.HWID) != len(p.chipID) {
		return nil, fmt.Errorf("VCEK: made by another version of this program (patch levels %+v)", parts)
	}
	p.chipID = [64]byte(exts.HWID)
	if now := time.Now(); now.After(p.vcek.NotAfter) {
		return nil, fmt.Errorf("VCEK: expired on %s", p.vcek.NotAfter.Format(time.DateOnly))
	}
	return p, errors.Join(p.ark.CheckSignatureFrom(p.ark), p.ask.CheckSignatureFrom(p.ark), p.vcek.CheckSignatureFrom(p.ask))
}
