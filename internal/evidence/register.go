package evidence

import "crypto/sha256"

// Names of the registers that tie an initdata document to evidence (wire/SPEC.md §3).
const (
	HostData   = "HOST_DATA"  // SNP, 32 bytes, set by the launcher
	MRConfigID = "MRCONFIGID" // TDX, 48 bytes, set by the launcher
	PCR8       = "PCR 8"      // Azure, 32 bytes, extended by the guest
	RTMR3      = "RTMR3"      // TDX, 48 bytes, extended by the guest
)

// FixedAtLaunch says that the guest cannot change the register.
func (l Launch) FixedAtLaunch() bool { return l.Register == HostData || l.Register == MRConfigID }

// InRegister is what a register holds after an initdata document with this digest, of any of its algorithms: cut or padded
// with zeros to 32 or 48 bytes, or extended into PCR 8 once, which only SHA-256 can be. nil: the register cannot hold it.
func InRegister(register string, digest []byte) []byte {
	fit := func(n int) []byte {
		out := make([]byte, n)
		copy(out, digest)
		return out
	}
	switch {
	case register == HostData:
		return fit(32)
	case register == MRConfigID:
		return fit(48)
	case register == PCR8 && len(digest) == sha256.Size:
		sum := sha256.Sum256(append(make([]byte, sha256.Size), digest...))
		return sum[:]
	}
	return nil
}
