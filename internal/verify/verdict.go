package verify

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// Text is the verdict for people: one line that says it, what the run was, what was checked, and what is not proven.
func (v *Verdict) Text() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	b.WriteString(v.headline() + "\n\n")
	p := v.Statement.Predicate
	verbs := map[string]string{"algorithm": "ran", "runtime": "with"}
	for _, m := range p.Images {
		line(cmp.Or(verbs[m.Name], "on"), "%s %s", m.URI, imageWords(m))
	}
	line("it ended", "%s, after %s", endWords(p), millis(p.Workload.Ended-p.Workload.Started))
	line("it took", "%s", usageWords(p.Resources))
	line("under", "the manifest with SHA-384 %s, %s%s", p.ManifestSHA384, bindingWords[p.Binding], computation(p))
	if p.ImagePolicy != "" {
		line("", "and the image policy with SHA-256 %s", p.ImagePolicy)
	}
	line("in", "ampoule %s (%s), Linux %s, launch measurement %s", p.Build.Init, p.Profile, p.Build.Kernel, v.Measurement)
	line("on hardware", "%s", v.hardware())
	line("at", "%s by its own clock, which its host sets", p.Completed)
	b.WriteString("\n")
	for _, c := range v.Checks {
		fmt.Fprintf(&b, "%-12s %-12s %s\n", c.Name, c.Status, c.Detail)
	}
	for _, n := range p.Notes {
		line("note", "%s", n)
	}
	if v.Simulated {
		return b.String() // nothing at all is proven to anyone else, which the first line says
	}
	for _, u := range v.Unproven {
		line("not proven", "%s", u)
	}
	for _, u := range neverProven {
		line("not proven", "%s", u)
	}
	return b.String()
}

// neverProven is what no receipt proves, whatever the hardware.
var neverProven = []string{
	"when it ran, in calendar time: the clock is the host's",
	"that it ran once only, or that the result is right",
}

func (v *Verdict) headline() string {
	var skipped []string
	for _, c := range v.Checks {
		if c.Status == "not checked" {
			skipped = append(skipped, c.Name)
		}
	}
	head := "PROVEN: this run, with this result, was in a confidential VM"
	switch {
	case !v.Proven:
		head = "REFUSED: the hardware signed this statement, and not everything about it holds"
	case len(skipped) > 0:
		head = "PROVEN as far as it was checked; not checked: " + strings.Join(skipped, ", ")
	}
	if v.Simulated {
		head += "\nSIMULATED: the hardware is a program, so that this proves nothing to anyone else"
	}
	return head
}

var bindingWords = map[string]string{
	result.BindLaunch:  "which the launch fixed",
	result.BindPinned:  "which the measured command line names",
	result.BindRuntime: "which the guest measured before it used it",
	result.BindNone:    "which nothing ties to the hardware",
}

func computation(p result.Predicate) string {
	if p.ComputationID == "" {
		return ""
	}
	return fmt.Sprintf(", computation %q", p.ComputationID)
}

func imageWords(m result.Image) string {
	words := []string{"encrypted"}
	if !m.Encrypted {
		words[0] = "not encrypted"
	}
	if !m.Pinned {
		words = append(words, "not pinned")
	}
	if m.PlainHTTP {
		words = append(words, "over plain http")
	}
	text := "(" + m.Name + ", " + strings.Join(words, ", ") + ")"
	if !strings.HasSuffix(m.URI, m.Digest) {
		text += " " + m.Digest
	}
	return text
}

func endWords(p result.Predicate) string {
	w := p.Workload
	end := "with no status"
	switch {
	case w.Deadline:
		end = "killed at its deadline"
	case w.OOM:
		end = "killed, out of memory"
	case w.Signal != "":
		end = "killed by " + w.Signal
	case w.Exit != nil:
		end = fmt.Sprintf("with exit status %d", *w.Exit)
	}
	return fmt.Sprintf("%s: %s", p.Reason, end)
}

func millis(us int64) time.Duration {
	return (time.Duration(us) * time.Microsecond).Round(time.Millisecond)
}

func usageWords(r result.Resources) string {
	words := []string{fmt.Sprintf("%.1f MB pulled", float64(r.Pulled)/1e6)}
	if r.CPU > 0 {
		words = append(words, fmt.Sprintf("%s of CPU time", millis(r.CPU)))
	}
	if r.MemoryPeak > 0 {
		words = append(words, fmt.Sprintf("at most %.1f MB of memory", float64(r.MemoryPeak)/1e6))
	}
	if r.ProcessesPeak > 0 {
		words = append(words, fmt.Sprintf("%d processes and threads", r.ProcessesPeak))
	}
	if r.OOMKills > 0 {
		words = append(words, fmt.Sprintf("%d killed for want of memory", r.OOMKills))
	}
	return strings.Join(words, ", ")
}

// hardware names the processor and how well it is patched.
func (v *Verdict) hardware() string {
	text := signedFor(&Claims{Kind: v.Kind, Product: v.Product})
	text += ", TCB " + tcbWords(v.TCB, v.Product)
	if v.TCBStatus != "" {
		text += " (" + strings.Join(append([]string{v.TCBStatus}, v.Advisories...), " ") + ")"
	}
	if was := v.Statement.Predicate.TEE.TCB; was != v.TCB {
		text += "; when it started, " + tcbWords(was, v.Product)
	}
	return text
}

// tcbWords spells the patch levels of an SNP report; those of TDX have no names.
func tcbWords(tcb, product string) string {
	b, err := hex.DecodeString(tcb)
	if err != nil || len(b) != 8 {
		return tcb
	}
	if product == "Turin" {
		return fmt.Sprintf("FMC %d, bootloader %d, TEE %d, SNP %d, microcode %d", b[0], b[1], b[2], b[3], b[7])
	}
	return fmt.Sprintf("bootloader %d, TEE %d, SNP %d, microcode %d", b[0], b[1], b[6], b[7])
}
