package verify

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A tcbStatus is how good a patch level is, as a set: what is true of one part of a platform is true of it.
type tcbStatus uint8

const (
	swHardening tcbStatus = 1 << iota
	configuration
	outOfDate
	revoked
)

// statuses are Intel's words. An outdated platform may need hardening too, for which there is no word.
var statuses = map[string]tcbStatus{
	"UpToDate": 0, "SWHardeningNeeded": swHardening, "ConfigurationNeeded": configuration,
	"ConfigurationAndSWHardeningNeeded": configuration | swHardening, "OutOfDate": outOfDate,
	"OutOfDateConfigurationNeeded": outOfDate | configuration, "Revoked": revoked,
}

func (s tcbStatus) String() string {
	switch {
	case s&revoked != 0:
		s = revoked
	case s&outOfDate != 0:
		s &^= swHardening
	}
	for word, v := range statuses {
		if v == s {
			return word
		}
	}
	return "unknown"
}

func (s *tcbStatus) UnmarshalText(text []byte) error {
	v, ok := statuses[string(text)]
	if !ok {
		return fmt.Errorf("TCB status %.40q: unknown", text)
	}
	*s = v
	return nil
}

func (s tcbStatus) accepted(also []string) bool {
	return s == 0 || s&revoked == 0 && slices.Contains(also, s.String())
}

// What Intel's answers hold that is looked at. They are signed, so that members which newer ones bring are let pass.
type (
	tcbInfo struct {
		ID         string           `json:"id"`
		Version    int              `json:"version"`
		Issued     time.Time        `json:"issueDate"`
		Next       time.Time        `json:"nextUpdate"`
		FMSPC      hexText          `json:"fmspc"`
		PCEID      hexText          `json:"pceId"`
		Module     tdxModule        `json:"tdxModule"`
		Identities []moduleIdentity `json:"tdxModuleIdentities"`
		Levels     []tcbLevel       `json:"tcbLevels"`
	}
	tdxModule struct {
		Signer     hexText `json:"mrsigner"`
		Attributes hexText `json:"attributes"`
		Mask       hexText `json:"attributesMask"`
	}
	moduleIdentity struct {
		ID string `json:"id"` // TDX_01 and the like
		tdxModule
		Levels []tcbLevel `json:"tcbLevels"`
	}
	qeIdentity struct {
		ID         string     `json:"id"`
		Version    int        `json:"version"`
		Issued     time.Time  `json:"issueDate"`
		Next       time.Time  `json:"nextUpdate"`
		Misc       hexText    `json:"miscselect"`
		MiscMask   hexText    `json:"miscselectMask"`
		Attributes hexText    `json:"attributes"`
		Mask       hexText    `json:"attributesMask"`
		Signer     hexText    `json:"mrsigner"`
		Product    int        `json:"isvprodid"`
		Levels     []tcbLevel `json:"tcbLevels"`
	}
	tcbLevel struct {
		TCB struct {
			SGX    []component `json:"sgxtcbcomponents"`
			PCESVN int         `json:"pcesvn"`
			TDX    []component `json:"tdxtcbcomponents"`
			ISVSVN int         `json:"isvsvn"`
		} `json:"tcb"`
		Date       string    `json:"tcbDate"`
		Status     tcbStatus `json:"tcbStatus"`
		Advisories []string  `json:"advisoryIDs"`
	}
	component struct {
		SVN uint8 `json:"svn"`
	}
	hexText []byte
)

func (h *hexText) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// level finds the patch level of a platform, and of the TDX module that runs on it: the worse of both is the status (Intel
// PCS, version 4, "TDX TCB info", and Intel TDX DCAP quote verification).
func (t *tcbInfo) level(pck *pckInfo, r *evidence.TDXReport, now time.Time) (tcbLevel, error) {
	if t.ID != "TDX" || t.Version != 3 {
		return tcbLevel{}, fmt.Errorf("is %.20q of version %d, want TDX of version 3", t.ID, t.Version)
	}
	if err := current(t.Issued, t.Next, now); err != nil {
		return tcbLevel{}, err
	}
	if !bytes.Equal(t.FMSPC, pck.fmspc[:]) || !bytes.Equal(t.PCEID, pck.pceID[:]) {
		return tcbLevel{}, fmt.Errorf("is of FMSPC %x, PCE %x, and the platform of %x, %x", []byte(t.FMSPC), []byte(t.PCEID), pck.fmspc, pck.pceID)
	}
	i := slices.IndexFunc(t.Levels, func(l tcbLevel) bool { return l.reached(pck, r) })
	if i < 0 {
		return tcbLevel{}, fmt.Errorf("has no level as low as the platform's: SGX %d, PCE %d, TDX %d", pck.components, pck.pceSVN, r.TEETCBSVN)
	}
	found, module, version := t.Levels[i], t.Module, r.TEETCBSVN[1]
	if version > 0 {
		id := fmt.Sprintf("TDX_%02x", version)
		i := slices.IndexFunc(t.Identities, func(m moduleIdentity) bool { return m.ID == id })
		if i < 0 {
			return tcbLevel{}, fmt.Errorf("knows no TDX module %s", id)
		}
		module = t.Identities[i].tdxModule
		svn, err := atLeast(t.Identities[i].Levels, int(r.TEETCBSVN[0]))
		if err != nil {
			return tcbLevel{}, fmt.Errorf("TDX module %s: %w", id, err)
		}
		found.Status |= svn.Status
		found.Date = min(found.Date, svn.Date)
		found.Advisories = join(found.Advisories, svn.Advisories)
	}
	attributes := binary.LittleEndian.AppendUint64(nil, r.SeamAttributes)
	if !bytes.Equal(module.Signer, r.MRSignerSeam[:]) || !masked(attributes, module.Mask, module.Attributes) {
		return tcbLevel{}, fmt.Errorf("the TDX module is of signer %x with attributes %x, want %x with %x", r.MRSignerSeam, attributes, []byte(module.Signer), []byte(module.Attributes))
	}
	return found, nil
}

// reached says that every part of a platform is as new as the level wants. The first two parts of the TDX TCB are the
// module's own, which from its version 1 on has levels of its own.
func (l *tcbLevel) reached(pck *pckInfo, r *evidence.TDXReport) bool {
	newer := func(want []component, have [16]uint8, from int) bool {
		if len(want) != len(have) {
			return false
		}
		for i := from; i < len(have); i++ {
			if have[i] < want[i].SVN {
				return false
			}
		}
		return true
	}
	from := 0
	if r.TEETCBSVN[1] > 0 {
		from = 2
	}
	return newer(l.TCB.SGX, pck.components, 0) && int(pck.pceSVN) >= l.TCB.PCESVN && newer(l.TCB.TDX, r.TEETCBSVN, from)
}

// Where things lie in the report of an enclave, bytes.
const (
	enclaveMisc       = 16
	enclaveAttributes = 48
	enclaveSigner     = 128
	enclaveProduct    = 256
	enclaveSVN        = 258
)

// level finds the patch level of the quoting enclave, which must be the one described.
func (q *qeIdentity) level(report []byte, now time.Time) (tcbLevel, error) {
	if q.ID != "TD_QE" || q.Version != 2 {
		return tcbLevel{}, fmt.Errorf("is %.20q of version %d, want TD_QE of version 2", q.ID, q.Version)
	}
	if err := current(q.Issued, q.Next, now); err != nil {
		return tcbLevel{}, err
	}
	// Intel writes MISCSELECT as the bytes stand in the report.
	if !masked(report[enclaveMisc:][:4], q.MiscMask, q.Misc) || !masked(report[enclaveAttributes:][:16], q.Mask, q.Attributes) ||
		!bytes.Equal(report[enclaveSigner:][:32], q.Signer) || int(binary.LittleEndian.Uint16(report[enclaveProduct:])) != q.Product {
		return tcbLevel{}, errors.New("is of another quoting enclave than signed this quote")
	}
	return atLeast(q.Levels, int(binary.LittleEndian.Uint16(report[enclaveSVN:])))
}

// atLeast gives the first, hence newest, level that a version reaches.
func atLeast(levels []tcbLevel, svn int) (tcbLevel, error) {
	i := slices.IndexFunc(levels, func(l tcbLevel) bool { return svn >= l.TCB.ISVSVN })
	if i < 0 {
		return tcbLevel{}, fmt.Errorf("has no level as low as %d", svn)
	}
	return levels[i], nil
}

func masked(b, mask, want []byte) bool {
	if len(mask) != len(b) || len(want) != len(b) {
		return false
	}
	for i := range b {
		if b[i]&mask[i] != want[i] {
			return false
		}
	}
	return true
}

func join(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}
