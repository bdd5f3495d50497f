package verify

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	sevverify "github.com/google/go-sev-guest/verify"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A CertStore holds VCEK and VLEK certificates for hosts that give their guests none. It decides nothing: what it offers
// is held against AMD's roots as if it had come with the evidence.
type CertStore struct {
	certs []*endorsement
}

// Bounds of a store: a VCEK has 1.4 KiB.
const (
	maxCertFile = 64 << 10
	maxCerts    = 4096
)

// LoadCerts reads every certificate file of a folder (.der, .pem, .crt, .cer, one VCEK or VLEK each; a PEM file may hold
// others behind it, as Azure gives them). Other files are left alone.
func LoadCerts(dir string) (*CertStore, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	s := new(CertStore)
	for _, f := range list {
		switch strings.ToLower(filepath.Ext(f.Name())) {
		case ".der", ".pem", ".crt", ".cer":
		default:
			continue
		}
		b, err := readBounded(filepath.Join(dir, f.Name()), maxCertFile)
		if err == nil {
			err = s.Add(b)
		}
		if err != nil {
			return nil, fmt.Errorf("certificates: %s: %w", f.Name(), err)
		}
	}
	return s, nil
}

// Add takes one VCEK or VLEK, DER or PEM; behind one in PEM others may follow, which are not read.
func (s *CertStore) Add(b []byte) error {
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	c, err := x509.ParseCertificate(b)
	if err != nil {
		return err
	}
	signer := evidence.VCEK
	if c.Subject.CommonName == "SEV-VLEK" {
		signer = evidence.VLEK
	}
	e, err := parseEndorsement(signer, b)
	if err != nil {
		return err
	}
	if len(s.certs) == maxCerts {
		return fmt.Errorf("more than %d certificates", maxCerts)
	}
	s.certs = append(s.certs, e)
	return nil
}

// find gives the certificate under whose key a report was signed. Chip id and TCB narrow the search; a host may mask the
// id, and then only the signature tells.
func (s *CertStore) find(r *evidence.SNPReport, report []byte) (*endorsement, error) {
	for _, e := range s.certs {
		if e.signer != r.Signer() || e.tcb != r.ReportedTCB || !e.ofChip(r) {
			continue
		}
		if sevverify.SnpReportSignature(report, e.cert) == nil {
			return e, nil
		}
	}
	return nil, fmt.Errorf("no %s certificate in the evidence, and none of the %d given is of chip %x with TCB %+v",
		r.Signer(), len(s.certs), r.ChipID, r.ReportedTCB)
}

// ofChip says that the certificate may be that of the chip which made the report.
func (e *endorsement) ofChip(r *evidence.SNPReport) bool {
	var hwid [64]byte
	copy(hwid[:], e.hwid)
	return e.signer == evidence.VLEK || r.ChipID == [64]byte{} || r.ChipID == hwid
}

func readBounded(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errors.New("too long")
	}
	return b, err
}
