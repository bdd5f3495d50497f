package evidence

// Names of the registers that tie an initdata document to evidence (wire/SPEC.md §3).
const (
	HostData   = "HOST_DATA"  // SNP, 32 bytes, set by the launcher
	MRConfigID = "MRCONFIGID" // TDX, 48 bytes, set by the launcher
	PCR8       = "PCR 8"      // Azure, 32 bytes, extended by the guest
	RTMR3      = "RTMR3"      // TDX, 48 bytes, extended by the guest
)

// FixedAtLaunch says that the guest cannot change the register.
func (l Launch) FixedAtLaunch() bool { return l.Register == HostData || l.Register == MRConfigID }
