package measure

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Types of events (TCG PC Client Platform Firmware Profile §10.4.1).
const (
	evNoAction     = 0x3
	evSeparator    = 0x4
	evEventTag     = 0x6
	evIPL          = 0xD
	evEFIVariable  = 0x80000001
	evEFIBoot      = 0x80000003 // an image that was loaded, by its Authenticode digest
	evEFIAction    = 0x80000007
	evFirmwareBlob = 0x8000000A
)

// A Hash256 is a SHA-256 digest; its text form is 64 hex digits.
type Hash256 [32]byte

func (h Hash256) String() string               { return hex.EncodeToString(h[:]) }
func (h Hash256) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

func (h *Hash256) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(h) {
		return errors.New("want 64 hex digits")
	}
	*h = Hash256(b)
	return nil
}

// Digests is one value in both algorithms that we predict.
type Digests struct {
	SHA256 Hash256              `json:"sha256"`
	SHA384 evidence.Measurement `json:"sha384"`
}

func digestsOf(data []byte) Digests {
	return Digests{sha256.Sum256(data), sha512.Sum384(data)}
}

// extend is what a register holds after it was extended with digests.
func (d Digests) extend(by Digests) Digests {
	return Digests{
		sha256.Sum256(append(d.SHA256[:], by.SHA256[:]...)),
		sha512.Sum384(append(d.SHA384[:], by.SHA384[:]...)),
	}
}

// An Event is one measurement of a boot, before it happens.
type Event struct {
	PCR     int     `json:"pcr"`
	Type    uint32  `json:"type"`
	What    string  `json:"what"`
	Digests Digests `json:"digests"`
}

// Registers are the PCRs after a list of events, each zero at first. Those in which nothing is extended are not there.
func Registers(events []Event) map[int]Digests {
	out := map[int]Digests{}
	for _, e := range events {
		out[e.PCR] = out[e.PCR].extend(e.Digests)
	}
	return out
}

// rtmr is the RTMR that firmware extends for a PCR in a TDX guest (UEFI 2.10 §38.4.1), and 0 for PCR 0, which MRTD replaces.
func rtmr(pcr int) (int, error) {
	switch {
	case pcr == 1, pcr == 7:
		return 0, nil
	case pcr >= 2 && pcr <= 6:
		return 1, nil
	case pcr >= 8 && pcr <= 15:
		return 2, nil
	}
	return 0, fmt.Errorf("PCR %d is no RTMR's", pcr)
}
