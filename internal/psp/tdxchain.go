package psp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// tdxChainFile holds the root, platform and PCK certificates and the private key of the PCK, then what Intel would say of
// them, as PEM in this order. All other keys are thrown away once they have signed.
const tdxChainFile = "simulated-tdx.pem"

// A tdxChain is what Intel and its provisioning service give a platform.
type tdxChain struct {
	root, platform, pck *x509.Certificate
	pckKey              *ecdsa.PrivateKey
	collateral          *result.IntelCollateral // nil in the file of an older version
}

// cpuSVN is the patch level of the simulated platform, a byte for each of the 16 SGX TCB components; pceSVN that of its
// provisioning certification enclave.
var cpuSVN = [16]byte{6, 6, 2, 2, 3, 1, 0, 3}

const pceSVN = 13

// fmspc names the family of the simulated platform.
var fmspc = []byte{0, 0x80, 0x6f, 5, 0, 0}

// sgxOID is Intel's arc for the extension of a PCK certificate and for what is in it.
var sgxOID = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

type sgxValue struct {
	ID    asn1.ObjectIdentifier
	Value any
}

// sgxExtension describes the platform as verifiers read it: PPID, TCB, PCE id, FMSPC, and that it is a multi-package one.
func sgxExtension() ([]byte, error) {
	id := func(n ...int) asn1.ObjectIdentifier { return append(append(asn1.ObjectIdentifier{}, sgxOID...), n...) }
	var tcb []sgxValue
	for i, svn := range cpuSVN {
		tcb = append(tcb, sgxValue{id(2, i+1), int(svn)})
	}
	tcb = append(tcb, sgxValue{id(2, 17), pceSVN}, sgxValue{id(2, 18), cpuSVN[:]})
	ppid, instance := make([]byte, 16), make([]byte, 16)
	rand.Read(ppid)
	rand.Read(instance)
	return asn1.Marshal([]sgxValue{
		{id(1), ppid},
		{id(2), tcb},
		{id(3), []byte{0, 0}},       // PCE id
		{id(4), fmspc},              // FMSPC
		{id(5), asn1.Enumerated(1)}, // scalable platform
		{id(6), instance},
		{id(7), []sgxValue{{id(7, 1), true}, {id(7, 2), true}, {id(7, 3), true}}}, // dynamic, cached keys, SMT
	})
}

// tdxName is a name that verifiers compare; whose it is stands in the organisation.
func tdxName(cn string) pkix.Name {
	return pkix.Name{CommonName: cn, Organization: []string{"Ampoule simulation, not Intel"}}
}

func newTDXChain() ([]byte, error) {
	rootKey, err1 := newP256()
	platformKey, err2 := newP256()
	pckKey, err3 := newP256()
	signerKey, err4 := newP256()
	sgx, err5 := sgxExtension()
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return nil, err
	}
	from := time.Now().Add(-time.Hour).Truncate(time.Second) // the guest's clock may be a little behind
	ca := x509.Certificate{
		NotBefore: from, NotAfter: from.AddDate(25, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
		// Every real one names a list; nothing is under this domain, and nothing of ours asks.
		CRLDistributionPoints: []string{"https://simulated.invalid/crl"},
	}
	root, platform := ca, ca
	root.Subject, root.MaxPathLen = tdxName("Intel SGX Root CA"), 1
	platform.Subject, platform.MaxPathLenZero = tdxName("Intel SGX PCK Platform CA"), true
	pck := x509.Certificate{
		Subject:   tdxName("Intel SGX PCK Certificate"),
		NotBefore: from, NotAfter: from.AddDate(7, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment, BasicConstraintsValid: true,
		CRLDistributionPoints: ca.CRLDistributionPoints,
		ExtraExtensions:       []pkix.Extension{{Id: sgxOID, Value: sgx}},
	}
	signer := x509.Certificate{
		Subject: tdxName("Intel SGX TCB Signing"), NotBefore: from, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, CRLDistributionPoints: ca.CRLDistributionPoints,
	}
	var certs [][]byte
	for _, c := range []struct {
		template, parent *x509.Certificate
		key, parentKey   *ecdsa.PrivateKey
	}{{&root, &root, rootKey, rootKey}, {&platform, &root, platformKey, rootKey}, {&pck, &platform, pckKey, platformKey}, {&signer, &root, signerKey, rootKey}} {
		point, err := c.key.PublicKey.Bytes()
		if err != nil {
			return nil, err
		}
		id := sha256.Sum256(point)
		c.template.SubjectKeyId = id[:20]
		c.template.SerialNumber = new(big.Int).SetBytes(id[:16])
		der, err := x509.CreateCertificate(rand.Reader, c.template, c.parent, &c.key.PublicKey, c.parentKey)
		if err != nil {
			return nil, err
		}
		certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: der}))
	}
	out, err1 := appendKey(slices.Concat(certs[:3]...), pckKey)
	rootCRL, err2 := emptyCRL(&root, rootKey, 0)
	pckCRL, err3 := emptyCRL(&platform, platformKey, 0)
	tcbInfo, qeIdentity, err4 := intelAnswers(from, signerKey)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	out = append(out, certs[3]...)
	for _, b := range []pem.Block{{Type: crlBlock, Bytes: rootCRL}, {Type: crlBlock, Bytes: pckCRL}, {Type: tcbInfoBlock, Bytes: tcbInfo}, {Type: qeIdentityBlock, Bytes: qeIdentity}} {
		out = append(out, pem.EncodeToMemory(&b)...)
	}
	return out, nil
}

func parseTDXChain(b []byte) (*tdxChain, error) {
	certs, key, err := splitChain(b)
	if err != nil {
		return nil, err
	}
	c := &tdxChain{root: certs[0], platform: certs[1], pck: certs[2], pckKey: key}
	hasSGX := false
	for _, e := range c.pck.Extensions {
		hasSGX = hasSGX || e.Id.Equal(sgxOID) && bytes.Contains(e.Value, cpuSVN[:])
	}
	if !hasSGX {
		return nil, errors.New("PCK certificate: made by another version of this program")
	}
	c.collateral = c.parseCollateral(b)
	if time.Now().After(c.pck.NotAfter) {
		return nil, fmt.Errorf("PCK certificate: expired on %s", c.pck.NotAfter.Format(time.DateOnly))
	}
	return c, errors.Join(c.root.CheckSignatureFrom(c.root), c.platform.CheckSignatureFrom(c.root), c.pck.CheckSignatureFrom(c.platform))
}

func newP256() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }
