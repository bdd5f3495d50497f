package verify

import (
	"bytes"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// Expect is what a receipt is held against. An empty field is not checked, and the verdict says so.
type Expect struct {
	Roots        []Root              // nil: AMD's
	Intel        []*x509.Certificate // nil: the Intel SGX Root CA
	Image        func(*Claims) error // as of Options
	Measurements []evidence.Measurement
	Manifest     []byte // exact bytes of the manifest that was sent
	ResultSHA256 []byte // of the result as delivered
	Now          time.Time
}

// A Check is one thing that a receipt was held against.
type Check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // "ok", "failed" or "not checked"
	Detail string `json:"detail,omitempty"`
}

// A Verdict is what a receipt proves.
type Verdict struct {
	Proven      bool                 `json:"proven"` // no check failed; those not checked are in Checks
	Simulated   bool                 `json:"simulated"`
	Product     string               `json:"product"`
	Measurement evidence.Measurement `json:"measurement"`
	Checks      []Check              `json:"checks"`
	Statement   *result.Statement    `json:"statement"`
	Unproven    []string             `json:"unproven,omitempty"` // what evidence of this kind does not prove, in sentences
}

// Receipt checks receipt.json: the signature of the evidence up to a root, that the evidence is about this very
// statement, and what e gives. The Verdict is nil only when the receipt cannot be read or its signature does not hold;
// nothing of the statement is true then. err joins every failed check.
func Receipt(b []byte, e Expect) (*Verdict, error) {
	r, st, err := result.ParseReceipt(b)
	if err != nil {
		return nil, err
	}
	ev, err := evidence.FromJSON(evidence.Kind(r.Evidence.Kind), r.Evidence.Evidence)
	if err != nil {
		return nil, fmt.Errorf("receipt: evidence: %w", err)
	}
	reportData := result.ReportData(r.Payload)
	claims, err := Evidence(ev, Options{Roots: e.Roots, Intel: e.Intel, ReportData: &reportData, Now: e.Now})
	if err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	v := &Verdict{Simulated: claims.Simulated, Product: claims.Product, Measurement: claims.Measurement, Statement: st, Unproven: claims.Unproven}
	v.add("evidence", nil, "signed by "+signedFor(&claims))
	p := st.Predicate

	v.hold("measurement", len(e.Measurements) > 0, func() error {
		return differs(slices.Contains(e.Measurements, claims.Measurement), "is %s, not among the %d accepted", claims.Measurement, len(e.Measurements))
	}, claims.Measurement.String())
	if e.Image != nil {
		v.add("image", e.Image(&claims), "measures as predicted")
	}
	v.hold("binding", true, func() error { return boundAs(p, claims) }, "the manifest was bound by "+p.Binding)
	v.hold("manifest", e.Manifest != nil, func() error {
		sum, init := sha512.Sum384(e.Manifest), manifest.InitdataDigest(manifest.Wrap(e.Manifest))
		return errors.Join(
			differs(p.ManifestSHA384 == hex.EncodeToString(sum[:]), "the run's has SHA-384 %s, this one %x", p.ManifestSHA384, sum),
			differs(p.InitdataSHA256 == hex.EncodeToString(init[:]), "the run's initdata has SHA-256 %s, this one's %x", p.InitdataSHA256, init))
	}, "sha384 "+p.ManifestSHA384)
	v.hold("result", e.ResultSHA256 != nil, func() error {
		want, _ := hex.DecodeString(st.Subject[0].Digest.SHA256)
		return differs(bytes.Equal(want, e.ResultSHA256), "the run's has SHA-256 %x, this one %x", want, e.ResultSHA256)
	}, "sha256 "+st.Subject[0].Digest.SHA256)

	var errs []error
	for _, c := range v.Checks {
		if c.Status == "failed" {
			errs = append(errs, fmt.Errorf("receipt: %s: %s", c.Name, c.Detail))
		}
	}
	v.Proven = len(errs) == 0
	return v, errors.Join(errs...)
}

// signedFor names who vouches for evidence.
func signedFor(c *Claims) string {
	switch {
	case c.Simulated:
		return "a SIMULATED TEE, which proves nothing to anyone else"
	case c.Kind == evidence.TDX:
		return "Intel TDX"
	case c.Kind == evidence.AzTDXvTPM:
		return "the vTPM of Azure's paravisor, for which Intel TDX vouches"
	case c.Kind == evidence.AzSNPvTPM:
		return "the vTPM of Azure's paravisor, for which AMD SEV-SNP vouches, " + c.Product
	}
	return "AMD SEV-SNP, " + c.Product
}

// boundAs holds the binding that the statement claims against the register that the hardware signed.
func boundAs(p result.Predicate, c Claims) error {
	if p.Measurement != "" && p.Measurement != c.Measurement.String() {
		return fmt.Errorf("the statement says launch measurement %s, the hardware %s", p.Measurement, c.Measurement)
	}
	switch p.Binding {
	case result.BindLaunch:
		if !(evidence.Launch{Register: c.Register}).FixedAtLaunch() {
			return errors.New("the statement says that the launch fixed the manifest, and this evidence has no register that a launch fixes")
		}
		digest, err := hex.DecodeString(p.InitdataSHA256)
		if err != nil {
			return fmt.Errorf("initdata_sha256: %w", err)
		}
		want := evidence.InRegister(c.Register, digest)
		return differs(want != nil && bytes.Equal(want, c.InitData), "%s is %x, and the statement's initdata digest is %s", c.Register, c.InitData, p.InitdataSHA256)
	case result.BindRuntime:
		digest, err := hex.DecodeString(p.InitdataSHA256)
		if err != nil || len(digest) != 32 {
			return fmt.Errorf("initdata_sha256: %.80q is no SHA-256", p.InitdataSHA256)
		}
		switch {
		case c.Register == evidence.PCR8:
			want := evidence.InRegister(c.Register, digest)
			return differs(bytes.Equal(want, c.InitData), "PCR 8 is %x, and with the statement's initdata digest it would be %x", c.InitData, want)
		case c.TDX != nil:
			want := extended([32]byte(digest))
			return differs(c.TDX.RTMR[3] == want, "RTMR3 is %x, and with the statement's initdata digest it would be %x", c.TDX.RTMR[3], want)
		}
		return errors.New("a runtime binding is in RTMR3 or PCR 8, and this evidence has neither")
	case result.BindPinned:
		return nil // in the measured command line, so in the launch measurement
	}
	return errors.New("the manifest was bound to nothing")
}

func differs(equal bool, format string, args ...any) error {
	if equal {
		return nil
	}
	return fmt.Errorf(format, args...)
}

func (v *Verdict) hold(name string, asked bool, check func() error, detail string) {
	if !asked {
		v.Checks = append(v.Checks, Check{name, "not checked", detail})
		return
	}
	v.add(name, check(), detail)
}

func (v *Verdict) add(name string, err error, detail string) {
	c := Check{name, "ok", detail}
	if err != nil {
		c.Status, c.Detail = "failed", err.Error()
	}
	v.Checks = append(v.Checks, c)
}

// Text is the verdict for people.
func (v *Verdict) Text() string {
	var b strings.Builder
	for _, c := range v.Checks {
		fmt.Fprintf(&b, "%-12s %-12s %s\n", c.Name, c.Status, c.Detail)
	}
	p := v.Statement.Predicate
	for _, i := range p.Images {
		how := "plain"
		if i.Encrypted {
			how = "encrypted"
		}
		fmt.Fprintf(&b, "%-12s %-12s %s\n", i.Name, how, i.Digest)
	}
	w := p.Workload
	end := "no status"
	switch {
	case w.Deadline:
		end = "ended by its deadline"
	case w.OOM:
		end = "out of memory"
	case w.Signal != "":
		end = w.Signal
	case w.Exit != nil:
		end = fmt.Sprintf("exit status %d", *w.Exit)
	}
	fmt.Fprintf(&b, "%-12s %-12s %s after %d ms\n", "workload", p.Reason, end, (w.Ended-w.Started)/1000)
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "%-12s %-12s %s\n", "note", "", n)
	}
	if v.Simulated {
		return b.String() // nothing at all is proven to anyone else, which the first line says
	}
	for _, u := range v.Unproven {
		fmt.Fprintf(&b, "%-12s %-12s %s\n", "not proven", "", u)
	}
	return b.String()
}
