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

// chainFile holds the ARK, ASK and VCEK certificates, the private key of the VCEK and the ARK's CRL, as PEM in this order. The keys of
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
	p, err := open(filepath.Join(dir, chainFile), newChain, parseChain)
	if err != nil {
		return nil, err
	}
	chain, err := open(filepath.Join(dir, tdxChainFile), newTDXChain, parseTDXChain)
	if err != nil {
		return nil, err
	}
	if p.tdx, err = newTDXModule(*chain); err != nil {
		return nil, fmt.Errorf("simulated TDX module: %w", err)
	}
	return p, nil
}

// open reads what path holds, and has it made where there is nothing.
func open[T any](path string, newChain func() ([]byte, error), parse func([]byte) (*T, error)) (*T, error) {
	v, err := load(path, parse)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(path, newChain); err != nil {
			return nil, fmt.Errorf("make simulated PSP %s: %w", path, err)
		}
		v, err = load(path, parse)
	}
	if err != nil {
		return nil, fmt.Errorf("simulated PSP %s: %w; remove the file to get a new chip", path, err)
	}
	return v, nil
}

// create writes a new chain beside path and links it there, so that whoever comes second loads the first one's.
func create(path string, newChain func() ([]byte, error)) (err error) {
	chain, err := newChain()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp")
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
	var out []byte
	for _, c := range []*x509.Certificate{s.Ark, s.Ask, s.Vcek} {
		out = append(out, certPEM(c)...)
	}
	if out, err = appendKey(out, key); err != nil {
		return nil, err
	}
	crl, err := emptyCRL(s.Ark, ark, x509.SHA384WithRSAPSS)
	return append(out, pem.EncodeToMemory(&pem.Block{Type: crlBlock, Bytes: crl})...), err
}

func appendKey(out []byte, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...), nil
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func load[T any](path string, parse func([]byte) (*T, error)) (*T, error) {
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
	return parse(b)
}

// splitChain reads three certificates and the private key of the third.
func splitChain(b []byte) (certs [3]*x509.Certificate, key *ecdsa.PrivateKey, err error) {
	for i := range certs {
		block, rest := pem.Decode(b)
		if block == nil || block.Type != "CERTIFICATE" {
			return certs, nil, errors.New("not three certificates and a key")
		}
		if certs[i], err = x509.ParseCertificate(block.Bytes); err != nil {
			return certs, nil, err
		}
		b = rest
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return certs, nil, errors.New("no private key behind the certificates")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return certs, nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(certs[2].PublicKey) {
		return certs, nil, errors.New("the private key is not that of the third certificate")
	}
	return certs, key, nil
}

func parseChain(b []byte) (*PSP, error) {
	certs, key, err := splitChain(b)
	if err != nil {
		return nil, err
	}
	p := &PSP{ark: certs[0], ask: certs[1], vcek: certs[2], key: key}
	if lists := splitBlocks(b)[crlBlock]; len(lists) == 1 {
		p.crl = lists[0]
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
