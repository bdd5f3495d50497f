package verify

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
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
	Manifest     []byte    // exact bytes of the manifest that was sent
	ResultSHA256 []byte    // of any form of the result: as delivered, or its tar in clear
	TarSHA256    []byte    // of the tar that came out of the result, where it was opened
	Now          time.Time // when certificates and collateral must have been good; zero: when the run completed, as it says
	TCBStatus    []string  // statuses taken besides UpToDate, as OutOfDate; Revoked never is
	Strict       bool      // what is not checked fails
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
	Kind        evidence.Kind        `json:"kind"`
	Product     string               `json:"product"`
	Measurement evidence.Measurement `json:"measurement"`
	TCB         string               `json:"tcb"`                  // of the evidence; hex as the report has it
	TCBStatus   string               `json:"tcb_status,omitempty"` // Intel's word for it, where there was collateral
	Advisories  []string             `json:"advisories,omitempty"`
	JudgedAt    string               `json:"judged_at"` // when certificates and collateral had to be good
	Checks      []Check              `json:"checks"`
	Statement   *result.Statement    `json:"statement"`
	Unproven    []string             `json:"unproven,omitempty"` // what evidence of this kind does not prove, in sentences
}

// slack is how far a machine's clock may be ahead of the verifier's.
const slack = 10 * time.Minute

// Receipt checks receipt.json: the signature of the evidence up to a root, that the evidence is about this very
// statement, that everything else in the file is signed by who it must be, and what e gives. Nothing is fetched. The
// Verdict is nil only when the receipt cannot be read or its signature does not hold; nothing of the statement is true then.
// err joins every failed check.
func Receipt(b []byte, e Expect) (*Verdict, error) {
	r, st, err := result.ParseReceipt(b)
	if err != nil {
		return nil, err
	}
	ev, err := oneForm(r.Evidence)
	if err != nil {
		return nil, fmt.Errorf("receipt: evidence: %w", err)
	}
	p := st.Predicate
	completed, err := time.Parse(result.TimeFormat, p.Completed)
	if err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	reportData := result.ReportData(r.Payload)
	o := Options{Roots: e.Roots, Intel: e.Intel, ReportData: &reportData, Now: e.Now, TCBStatus: e.TCBStatus, whole: true}
	if o.Now.IsZero() {
		o.Now = completed
	}
	if err := o.take(ev.Kind, r.Collateral); err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	claims, err := Evidence(ev, o)
	if err != nil && !outdated(err) {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	v := &Verdict{
		Simulated: claims.Simulated, Kind: ev.Kind, Product: claims.Product, Measurement: claims.Measurement, TCB: hex.EncodeToString(ev.TCB()),
		TCBStatus: claims.TCBStatus, Advisories: claims.Advisory, JudgedAt: o.Now.UTC().Format(result.TimeFormat), Statement: st, Unproven: claims.Unproven,
	}
	v.add("evidence", nil, "signed by "+signedFor(&claims))
	if claims.TCBStatus != "" {
		v.add("patch level", err, strings.Join(append([]string{claims.TCBStatus}, claims.Advisory...), " "))
	}
	v.hold("collateral", r.Collateral != nil, func() error { return nil }, collateralDetail(r))
	v.add("statement", agrees(p, ev, claims), "agrees with the evidence")
	v.add("time", differs(!completed.After(time.Now().Add(slack)), "the run completed at %s, which is yet to come", p.Completed), "certificates judged as of "+v.JudgedAt)

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
	v.holdResult(e)

	var errs []error
	for i, c := range v.Checks {
		if e.Strict && c.Status == "not checked" {
			c = Check{c.Name, "failed", "not checked, and everything was to be"}
			v.Checks[i] = c
		}
		if c.Status == "failed" {
			errs = append(errs, fmt.Errorf("receipt: %s: %s", c.Name, c.Detail))
		}
	}
	v.Proven = len(errs) == 0
	return v, errors.Join(errs...)
}

// outdated says that everything holds but the patch level of the platform, which is for whoever reads the receipt to judge.
func outdated(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(joined.Unwrap(), func(e error) bool { return !outdated(e) })
	}
	claim, ok := errors.AsType[*ClaimError](err)
	return ok && claim.Claim == "tcb_status" && !strings.Contains(claim.Got, "Revoked")
}

// oneForm reads evidence that is written as PID 1 writes it, and refuses any other spelling of the same.
func oneForm(e result.Evidence) (evidence.Evidence, error) {
	ev, err := evidence.FromJSON(evidence.Kind(e.Kind), e.Evidence)
	if err != nil {
		return ev, err
	}
	again, err := ev.JSON()
	if err != nil {
		return ev, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, e.Evidence); err != nil {
		return ev, err
	}
	return ev, differs(bytes.Equal(again, compact.Bytes()), "not in the one form of %s evidence", ev.Kind)
}

// holdResult holds what was given of the result against the forms that the statement names.
func (v *Verdict) holdResult(e Expect) {
	forms := v.Statement.Subject
	got := hex.EncodeToString(e.ResultSHA256)
	i := slices.IndexFunc(forms, func(f result.Subject) bool { return f.Digest.SHA256 == got })
	named := forms[max(i, 0)]
	v.hold("result", e.ResultSHA256 != nil, func() error {
		return differs(i >= 0, "the run's %s has SHA-256 %s, this one %s", named.Name, named.Digest.SHA256, got)
	}, named.Name+", sha256 "+named.Digest.SHA256)
	if e.TarSHA256 != nil {
		tar := forms[len(forms)-1].Digest.SHA256
		v.add("contents", differs(tar == hex.EncodeToString(e.TarSHA256), "the run's tar has SHA-256 %s, this one %x", tar, e.TarSHA256), "sha256 "+tar)
	}
}

// collateralDetail says what a receipt brings, or lacks, to be verified with in years.
func collateralDetail(r *result.Receipt) string {
	switch {
	case r.Collateral == nil:
		return "the receipt brings none; ampoule verify --collect adds it"
	case r.Collateral.AMD != nil:
		return "AMD's certificates, and its revocation list"
	}
	return "Intel's TCB info, QE identity and revocation lists"
}

// agrees holds what the statement repeats of the evidence, or says of what stands beside it.
func agrees(p result.Predicate, ev evidence.Evidence, c Claims) error {
	log := ""
	if len(ev.EventLog) > 0 {
		log = fmt.Sprintf("%x", sha256.Sum256(ev.EventLog))
	}
	return errors.Join(
		differs(p.TEE.Kind == string(ev.Kind), "it says TEE %s, and the evidence is of %s", p.TEE.Kind, ev.Kind),
		differs(p.Build.EventLog == log, "it says that the event log has SHA-256 %.64q, and this one has %.64q", p.Build.EventLog, log),
		differs(p.Measurement == "" || p.Measurement == c.Measurement.String(), "it says launch measurement %s, the hardware %s", p.Measurement, c.Measurement),
		differs(!c.Simulated || p.Profile == "simulation", "it says profile %s, and the hardware is simulated", p.Profile))
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
