package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Options is what evidence is held against. A nil field is not compared, and one that the evidence has nothing for is a
// failure. That a guest can be debugged, moved, or speaks from below VMPL 0 is refused whatever the options say.
type Options struct {
	Roots        []Root                 // nil: AMD's. Given ones replace AMD's, so that real and simulated never pass as each other
	ReportData   *[64]byte              // Azure and sample evidence holds the first 48 bytes, and those are compared
	HostData     *[32]byte              // SNP only
	InitData     []byte                 // digest of an initdata document, held against the register of the kind
	Measurements []evidence.Measurement // the report's must be among them; an empty list that is not nil accepts none
	Image        func(*Claims) error    // says what of them is not as predicted; nil: not asked
	Now          time.Time              // for the validity of certificates; zero: the clock

	Intel       []*x509.Certificate // nil: the Intel SGX Root CA. Given ones replace it, as Roots do AMD's
	AllowSample bool                // evidence that proves nothing is taken
	VCEKs       *CertStore          // where the certificate of an SNP report is looked for when the evidence brings none
	Collateral  *Collateral         // what Intel says of platforms; nil: the patch level of a TDX platform is not judged
	TCBStatus   []string            // statuses taken besides UpToDate, as OutOfDate; Revoked never is

	whole bool           // of a receipt: what nobody vouches for is refused
	amd   *amdCollateral // of a receipt
}

func (o Options) now() time.Time {
	if o.Now.IsZero() {
		return time.Now()
	}
	return o.Now
}

// Claims are what evidence says whose signatures held.
type Claims struct {
	Measurement evidence.Measurement // SNP MEASUREMENT, TDX MRTD; of the Azure kinds that of the paravisor
	HostData    [32]byte
	ReportData  [64]byte // zeros behind what Azure and sample evidence holds
	VMPL        uint32
	Policy      uint64
	GuestSVN    uint32
	TCB         evidence.TCB    // the reported one, equal to that of the certificate
	Signer      evidence.Signer // VCEK or VLEK
	ChipID      [64]byte        // zero under a VLEK, or when the host masks it
	Product     string          // Milan, Genoa, Turin, TDX, sample
	Simulated   bool            // the root is not the vendor's

	Kind      evidence.Kind
	Register  string              // evidence.HostData, MRConfigID, RTMR3 or PCR8; "" for a kind without one
	InitData  []byte              // what the register holds
	SNP       *evidence.SNPReport // what an AMD processor signed; of az-snp-vtpm the paravisor's report
	TDX       *evidence.TDXReport // what an Intel one signed; fields above that are SNP's are then zero
	TCBStatus string              // Intel's word for the platform's patch level; "" without collateral
	TCBDate   string              // of that patch level, RFC 3339
	Advisory  []string            // what Intel published about it, as INTEL-SA-00837
	PCRs      *[24][32]byte       // of the vTPM, SHA-256; Azure only
	Unproven  []string            // what this evidence does not prove, in sentences

	header   []byte              // of the TDX quote, and for version 5 what stands before its body
	nonce    []byte              // what the vTPM signed, as long as it was
	instance []byte              // of the Intel platform, from its certificate; nil where it says none
	events   []evidence.LogEvent // of a log that led to the RTMRs
	endorsed *endorsement        // the key that signed an SNP report
	root     Root                // that it hangs from
}

// Holds says that a register of this evidence holds the SHA-256 digest of an initdata document. For TDX that is MRCONFIGID,
// or RTMR3 where the launcher left MRCONFIGID zero.
func (c *Claims) Holds(initdata [32]byte) bool {
	if c.Register == evidence.RTMR3 || c.Register == evidence.MRConfigID && empty(c.InitData) {
		return c.TDX != nil && c.TDX.RTMR[3] == extended(initdata)
	}
	return evidence.Launch{Register: c.Register, InitData: c.InitData}.Holds(initdata)
}

// extended is RTMR3 of a guest that measured an initdata document into it and nothing else.
func extended(initdata [32]byte) [48]byte {
	_, digest := evidence.InitDataEvent(initdata)
	return evidence.Extend384([48]byte{}, digest)
}

func empty(register []byte) bool { return (evidence.Launch{InitData: register}).Empty() }

// A ClaimError says that the signature holds and one claim does not.
type ClaimError struct {
	Claim     string
	Want, Got string
}

func (e *ClaimError) Error() string { return fmt.Sprintf("%s: is %s, want %s", e.Claim, e.Got, e.Want) }

// reportDataSize is how much of the report data evidence of a kind holds, bytes: a vTPM of Azure takes at most 50.
func reportDataSize(k evidence.Kind) int {
	switch k {
	case evidence.AzSNPvTPM, evidence.AzTDXvTPM, evidence.Sample:
		return 48
	}
	return 64
}

// expected holds the claims against what o wants; a claim that the evidence does not make fails.
func expected(c *Claims, o Options) (errs []error) {
	fail := func(claim string, want []byte, got string) {
		errs = append(errs, &ClaimError{claim, hex.EncodeToString(want), got})
	}
	equal := func(claim string, want, got []byte) {
		if !bytes.Equal(want, got) {
			fail(claim, want, hex.EncodeToString(got))
		}
	}
	if o.ReportData != nil {
		n := reportDataSize(c.Kind)
		equal("report_data", o.ReportData[:n], c.ReportData[:n])
	}
	switch {
	case o.HostData == nil:
	case c.Kind == evidence.SNP:
		equal("host_data", o.HostData[:], c.HostData[:])
	default:
		fail("host_data", o.HostData[:], fmt.Sprintf("nothing: evidence of kind %s has none", c.Kind))
	}
	if o.InitData != nil {
		want := evidence.InRegister(c.Register, o.InitData)
		switch {
		case c.Register == "":
			fail("init_data", o.InitData, "nothing: this evidence has no register for it")
		case c.Register == evidence.RTMR3: // compared where it was chosen
		case want == nil:
			fail("init_data", o.InitData, c.Register+", which no digest of this length goes into: the initdata document must use sha256")
		case empty(c.InitData):
			fail("init_data", want, "nothing: "+c.Register+" is zero")
		default:
			equal("init_data", want, c.InitData)
		}
	}
	if o.Image != nil {
		if err := o.Image(c); err != nil {
			errs = append(errs, err)
		}
	}
	if o.Measurements != nil {
		var want []string
		for _, m := range o.Measurements {
			if m == c.Measurement && c.Kind != evidence.Sample {
				return errs
			}
			want = append(want, m.String())
		}
		errs = append(errs, &ClaimError{"measurement", "one of [" + strings.Join(want, " ") + "]", c.Measurement.String()})
	}
	return errs
}
