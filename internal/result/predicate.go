package result

import (
	"regexp"
	"slices"
	"time"
)

// TimeFormat is RFC 3339 in UTC with whole seconds.
const TimeFormat = "2006-01-02T15:04:05Z"

// Build is what PID 1 can know of the image that it is part of. That it is this image, the launch measurement says, which
// covers what PID 1 cannot see: kernel and initramfs as files, and the firmware.
type Build struct {
	Init     string `json:"init"`                       // version of PID 1
	Go       string `json:"go"`                         // that built it
	Kernel   string `json:"kernel"`                     // release, as uname has it
	Cmdline  string `json:"cmdline_sha256"`             // of the kernel's command line, without the newline, as the loader completed it
	EventLog string `json:"event_log_sha256,omitempty"` // of the log beside the evidence, whose texts no register holds; TDX only
}

// TEE is the hardware as it was before the manifest was read. The evidence says what it is after the run.
type TEE struct {
	Kind string `json:"kind"`          // of the evidence
	TCB  string `json:"tcb,omitempty"` // REPORTED_TCB (16 hex) or TEE_TCB_SVN (32 hex) as it stands in the report; absent where there is none
}

// Resources are what the run took. A number that the kernel did not give is absent.
type Resources struct {
	MemoryPeak    int64 `json:"memory_peak_bytes,omitempty"` // of the workload, with what it wrote
	CPU           int64 `json:"cpu_us,omitempty"`            // user and system time of the workload, µs
	ProcessesPeak int64 `json:"processes_peak,omitempty"`    // processes and threads of the workload at once
	OOMKills      int64 `json:"oom_kills,omitempty"`         // processes of it that the kernel killed for want of memory
	Pulled        int64 `json:"pulled_bytes"`                // of images and files, by the machine; more than their size if some were fetched again
}

// Collateral is what evidence is judged with, so that nothing has to be asked for then. It is not signed as a whole: each
// part is by its maker. One member is set.
type Collateral struct {
	AMD   *AMDCollateral   `json:"amd,omitempty"`
	Intel *IntelCollateral `json:"intel,omitempty"`
}

// AMDCollateral is of an SNP report.
type AMDCollateral struct {
	Certificates [][]byte `json:"certificates"` // DER: VCEK or VLEK, which on Azure the evidence has; ASK or ASVK; ARK
	CRL          []byte   `json:"crl"`          // of the ARK, DER
}

// IntelCollateral is of a TDX quote, which brings its own certificates.
type IntelCollateral struct {
	TCBInfo    []byte `json:"tcb_info"`    // {"tcbInfo":…,"signature":"…"}
	QEIdentity []byte `json:"qe_identity"` // {"enclaveIdentity":…,"signature":"…"}
	Issuers    []byte `json:"issuers"`     // PEM: who signed these two, then the root
	PCKCRL     []byte `json:"pck_crl"`     // of the CA that certified the platform, DER
	RootCRL    []byte `json:"root_crl"`    // of the root, DER
}

// formName is that of a form of the result which is delivered.
var formName = regexp.MustCompile(`^result(\.[a-z0-9]{1,8}){1,4}$`)

// check reports by must what a reader may not take for granted of the parts that are in this file.
func (p *Predicate) check(must func(ok bool, format string, args ...any)) {
	t, err := time.Parse(TimeFormat, p.Completed)
	must(err == nil && t.Format(TimeFormat) == p.Completed, "predicate.completed: %.40q is not a time as 2026-01-31T12:00:00Z", p.Completed)
	must(isHex(p.Build.Cmdline, 32), "predicate.build.cmdline_sha256: %.80q is not 64 hex digits", p.Build.Cmdline)
	must(p.Build.EventLog == "" || isHex(p.Build.EventLog, 32), "predicate.build.event_log_sha256: %.80q is not 64 hex digits", p.Build.EventLog)
	must(name(p.TEE.Kind), "predicate.tee.kind: %.40q is not a word", p.TEE.Kind)
	must(p.TEE.TCB == "" || isHex(p.TEE.TCB, 8) || isHex(p.TEE.TCB, 16), "predicate.tee.tcb: %.80q is not 16 or 32 hex digits", p.TEE.TCB)
	must(p.ImagePolicy == "" || isHex(p.ImagePolicy, 32), "predicate.image_policy_sha256: %.80q is not 64 hex digits", p.ImagePolicy)
	r := p.Resources
	must(min(r.MemoryPeak, r.CPU, r.ProcessesPeak, r.OOMKills, r.Pulled) >= 0, "predicate.resources: a negative number")
}

// checkSubjects wants each form once, the tar last, and a sealed result to have another form before it.
func (s *Statement) checkSubjects(must func(ok bool, format string, args ...any)) {
	n := len(s.Subject)
	must(n >= 1 && n <= maxSubjects, "subject: has %d entries, want 1 to %d", n, maxSubjects)
	var names []string
	for i, f := range s.Subject {
		must(isHex(f.Digest.SHA256, 32), "subject[%d].digest.sha256: %.80q is not 64 hex digits", i, f.Digest.SHA256)
		must(formName.MatchString(f.Name) && !slices.Contains(names, f.Name), "subject[%d].name: %.80q is there twice, or no name of a result", i, f.Name)
		must((f.Name == TarName) == (i == n-1), "subject[%d].name: is %.80q; want %s as the last, and nowhere else", i, f.Name, TarName)
		names = append(names, f.Name)
	}
	must(!s.Predicate.Sealed || n >= 2, "subject: a sealed result has another form than %s", TarName)
}
