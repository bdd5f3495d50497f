package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// readMeasurements reads measurements.json, of which image is what a launch measurement alone does not say, or a JSON list of
// launch measurements. An empty list would accept nothing, which nobody means.
func readMeasurements(std stdio, file string) (list []evidence.Measurement, image func(*verify.Claims) error, err error) {
	b, err := std.readFile(file, maxMeasurements)
	if err != nil {
		return nil, nil, err
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		m, err := measure.ParseMeasurements(b)
		if err != nil {
			return nil, nil, fmt.Errorf("--measurements %s: %w", file, err)
		}
		return m.Launch(), asPredicted(m), nil
	}
	list, err = measurementList(b)
	if err != nil {
		return nil, nil, fmt.Errorf("--measurements %s: %w", file, err)
	}
	return list, nil, nil
}

// asPredicted holds evidence against the predictions of one image.
func asPredicted(m *measure.Measurements) func(*verify.Claims) error {
	return func(c *verify.Claims) error {
		o := measure.Observed{Kind: c.Kind, Measurement: c.Measurement, PCR: c.PCRs}
		if c.TDX != nil {
			o.RTMR = &c.TDX.RTMR
		}
		return m.Match(o)
	}
}

func measurementList(b []byte) ([]evidence.Measurement, error) {
	var texts []string // not of measurements: null would be one of zeros
	if err := json.Unmarshal(b, &texts); err != nil {
		return nil, fmt.Errorf("want measurements.json, or a JSON list of strings: %w", err)
	}
	if len(texts) == 0 {
		return nil, errors.New("the list is empty")
	}
	var list []evidence.Measurement
	for i, s := range texts {
		m, err := evidence.ParseMeasurement(s)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		list = append(list, m)
	}
	return list, nil
}

// initDataDigest takes a digest in hex, or the file of an initdata document, which names its own algorithm.
func initDataDigest(std stdio, arg string) ([]byte, error) {
	if b, err := hex.DecodeString(arg); err == nil {
		if len(b) != 32 && len(b) != 48 && len(b) != 64 {
			return nil, usagef("--init-data %.140q: want a digest of 32, 48 or 64 bytes in hex, or a file; ampoule manifest digest prints one", arg)
		}
		return b, nil
	}
	doc, err := std.readFile(arg, 2*manifest.MaxSize) // the manifest, quoted
	if err != nil {
		return nil, usagef("--init-data %.140q: neither a digest in hex nor a file: %v", arg, err)
	}
	var head struct {
		Algorithm string `toml:"algorithm"`
	}
	if _, err := toml.Decode(string(doc), &head); err != nil {
		return nil, fmt.Errorf("--init-data %s: no initdata document, as ampoule manifest initdata prints one: %w", arg, err)
	}
	switch head.Algorithm {
	case "sha256":
		sum := sha256.Sum256(doc)
		return sum[:], nil
	case "sha384":
		sum := sha512.Sum384(doc)
		return sum[:], nil
	case "sha512":
		sum := sha512.Sum512(doc)
		return sum[:], nil
	}
	return nil, fmt.Errorf("--init-data %s: algorithm is %.20q, want sha256, sha384 or sha512", arg, head.Algorithm)
}

// judges fills in what the flags give to judge with, and refuses flags that the kind has no use for: who gives one expects
// it to count.
func (f *evidenceFlags) judges(o *verify.Options) (err error) {
	kind := evidence.Kind(f.kind)
	snp, tdx := kind == evidence.SNP, kind == evidence.TDX || kind == evidence.AzTDXvTPM
	switch {
	case f.cert != "" && !snp:
		return usagef("--cert goes with --kind snp")
	case f.eventlog != "" && kind != evidence.TDX:
		return usagef("--eventlog goes with --kind tdx")
	case f.fetch && !snp && !tdx:
		return usagef("--fetch goes with --kind snp, tdx or az-tdx-vtpm")
	case f.fetch && tdx && f.collateral != "":
		return usagef("--fetch and --collateral: one of them says what Intel says")
	case f.collateral != "" && !snp && !tdx:
		return usagef("--collateral goes with --kind snp, tdx or az-tdx-vtpm")
	case f.tcbStatus != "" && (f.collateral == "" && !f.fetch || !tdx):
		return usagef("--tcb-status goes with --collateral or --fetch, and with --kind tdx or az-tdx-vtpm")
	case snp && f.collateral != "":
		o.VCEKs, err = verify.LoadCerts(f.collateral)
		return err
	}
	if f.tcbStatus != "" {
		o.TCBStatus = strings.Split(f.tcbStatus, ",")
	}
	if f.collateral != "" {
		o.Collateral, err = verify.LoadCollateral(f.collateral)
	}
	return err
}

// fetched asks AMD for the VCEK where the evidence brings no certificate of its signer, and Intel for what it says of the
// platform.
func (f *evidenceFlags) fetched(ctx context.Context, ev evidence.Evidence, o *verify.Options) (evidence.Evidence, error) {
	quote := ev.Report
	switch ev.Kind {
	case evidence.AzTDXvTPM:
		quote = ev.Aux
		fallthrough
	case evidence.TDX:
		var err error
		if o.Collateral, err = verify.FetchCollateral(ctx, f.pcs, quote, *o); err != nil {
			if c, bad := verify.Evidence(ev, *o); c.Kind == "" {
				return ev, &exitError{3, bad} // the quote's fault, not the network's
			}
			return ev, fmt.Errorf("--fetch: %w", err)
		}
		return ev, nil
	}
	certs, err := evidence.ParseCerts(ev.Aux)
	if err != nil || slices.ContainsFunc(certs, func(c evidence.Cert) bool { return c.Type == "VCEK" || c.Type == "VLEK" }) {
		return ev, nil // a broken table is refused where it is judged
	}
	der, err := verify.FetchVCEK(ctx, f.kds, ev.Report)
	if err != nil {
		return ev, fmt.Errorf("--fetch: %w", err)
	}
	ev.Aux, err = evidence.MarshalCerts(append(certs, evidence.Cert{Type: "VCEK", DER: der}))
	return ev, err
}
