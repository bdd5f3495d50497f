package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A BootReport is how long a machine takes from the start of QEMU to its end, and how small it can be.
type BootReport struct {
	Machine Machine       `json:"machine"`
	Accel   string        `json:"accel"`
	Load    string        `json:"load"` // of the machine when it began: /proc/loadavg
	Sizes   []Format      `json:"sizes"`
	Boots   []BootSeries  `json:"boots"`
	CPU     CPUTimes      `json:"cpu"`
	Kernel  KernelTimes   `json:"kernel"`
	Formats []FormatTable `json:"formats"`
	Memory  []LeastMemory `json:"memory,omitempty"`
}

// A BootSeries are runs of one machine.
type BootSeries struct {
	Name   string     `json:"name"`
	Runs   []BootTime `json:"runs"`
	Median BootTime   `json:"median"`
}

// A BootTime is one run, in the order of what happens. Where the host's and the guest's clock meet it errs by the delay of the fastest
// event.
type BootTime struct {
	Firmware time.Duration `json:"firmware_ns"` // start of QEMU to the zero of the kernel's clock: QEMU, firmware, the kernel's unpacking
	Kernel   time.Duration `json:"kernel_ns"`   // to the first step of PID 1, its own start included
	Steps    []StepTime    `json:"steps"`
	First    time.Duration `json:"first_ns"`  // start of the step execute to the first instruction of the workload
	Total    time.Duration `json:"total_ns"`  // first step to that instruction
	Ours     time.Duration `json:"ours_ns"`   // of Total, without the steps that wait for others
	Ending   time.Duration `json:"ending_ns"` // outcome to the exit of QEMU
	Whole    time.Duration `json:"whole_ns"`  // of QEMU
}

// A StepTime is a step of PID 1.
type StepTime struct {
	Name string        `json:"name"`
	Wall time.Duration `json:"ns"`
	CPU  time.Duration `json:"cpu_ns"`
}

// own are the steps before the workload's first instruction whose time is not the network's, the broker's or the registry's.
var own = []string{"mount", "lockdown", "platform", "bind", "swap", "execute"}

// Own says whether a step counts for what PID 1 itself needs until the workload's first instruction.
func Own(step string) bool { return slices.Contains(own, step) }

// CPUTimes are what PID 1 needs from its start to the workload's first instruction, in processor time of the guest, and what that would be
// on this machine's own processor.
type CPUTimes struct {
	Start  time.Duration `json:"start_ns"`  // from the kernel's "Run /init" to the first step, by the guest's clock
	Steps  time.Duration `json:"steps_ns"`  // of the steps that are its own, all of execute with them
	Sum    time.Duration `json:"sum_ns"`    // of both
	Guest  Loops         `json:"guest"`     // the same loops in the guest
	Host   Loops         `json:"host"`      // and on this machine
	Native time.Duration `json:"native_ns"` // start of /init on this machine, until it finds that it is a stub without a spec
	Limit  time.Duration `json:"limit_ns"`  // for Sum

	GuestStub  time.Duration `json:"guest_stub_ns"`  // processor time of the sandbox's stub up to the program's first instruction
	NativeStub time.Duration `json:"native_stub_ns"` // the same on this machine, 0 if not measured
}

// CPULimit is what PID 1 may need, on hardware.
const CPULimit = 150 * time.Millisecond

// Ratio is by what the guest's processor time is divided to have that of this machine: what the sandbox's stub takes in both, which is code
// of the same kind as all of PID 1. Where that was not measured it is the loop that emulation slows down the least, so that an estimate is
// rather too long.
func (c CPUTimes) Ratio() float64 {
	if c.NativeStub > 0 {
		return max(1, ratio(c.GuestStub, c.NativeStub))
	}
	a, b, p := c.Guest.Ratios(c.Host)
	return max(1, min(a, b, p))
}

// Estimate is Sum on hardware.
func (c CPUTimes) Estimate() time.Duration { return time.Duration(float64(c.Sum) / c.Ratio()) }

// KernelTimes are of boots with initcall_debug, which writing to the console makes slower. Each is the least of them.
type KernelTimes struct {
	Boots    int           `json:"boots"`
	Run      time.Duration `json:"run_init_ns"` // zero of the kernel's clock to "Run /init"
	Unpack   time.Duration `json:"unpack_ns"`   // of the initramfs, beside other things
	Initcall time.Duration `json:"initcalls_ns"`
	Slowest  []Initcall    `json:"slowest"`
}

// A FormatTable is one content in several formats.
type FormatTable struct {
	Content string   `json:"content"`
	Formats []Format `json:"formats"`
}

// LeastMemory is the smallest memory with which a job succeeded, and with which it did not.
type LeastMemory struct {
	Firmware string `json:"firmware"`
	Job      string `json:"job"`
	Works    int    `json:"works_mib"`
	Fails    int    `json:"fails_mib"` // 0: the least that can be asked for works
}

// MedianBoot takes each quantity's lower median by itself.
func MedianBoot(runs []BootTime) (m BootTime) {
	of := func(get func(BootTime) time.Duration) time.Duration {
		var all []time.Duration
		for _, r := range runs {
			all = append(all, get(r))
		}
		return Median(all)
	}
	m = BootTime{
		Firmware: of(func(b BootTime) time.Duration { return b.Firmware }), Kernel: of(func(b BootTime) time.Duration { return b.Kernel }),
		First: of(func(b BootTime) time.Duration { return b.First }), Total: of(func(b BootTime) time.Duration { return b.Total }),
		Ours: of(func(b BootTime) time.Duration { return b.Ours }), Ending: of(func(b BootTime) time.Duration { return b.Ending }),
		Whole: of(func(b BootTime) time.Duration { return b.Whole }),
	}
	if len(runs) == 0 {
		return m
	}
	for i, s := range runs[0].Steps {
		m.Steps = append(m.Steps, StepTime{s.Name,
			of(func(b BootTime) time.Duration { return b.Steps[i].Wall }), of(func(b BootTime) time.Duration { return b.Steps[i].CPU })})
	}
	return m
}

// Text is the report for a terminal and a document: tables of Markdown, their columns aligned.
func (r *BootReport) Text() string {
	var t strings.Builder
	fmt.Fprintf(&t, "- %s, %d cores, %d GiB, Linux %s, %s; QEMU under %s\n", r.Machine.CPU, r.Machine.Cores,
		(r.Machine.Memory+1<<29)>>30, r.Machine.Kernel, r.Machine.Go, r.Accel)
	fmt.Fprintf(&t, "- medians of %d runs each; load of the machine when it began: %s\n\nSizes, bytes:\n\n", len(r.Boots[0].Runs), r.Load)
	rows := [][]string{{"file", "bytes"}}
	for _, f := range r.Sizes {
		rows = append(rows, []string{f.Name, fmt.Sprint(f.Bytes)})
	}
	writeTable(&t, rows)
	t.WriteString("\nFrom the start of QEMU to its exit, ms; of steps also the processor time of PID 1:\n\n")
	writeTable(&t, r.bootRows())
	t.WriteString("\nProcessor time from the start of PID 1 to the workload's first instruction, without network, manifest, resolve, attest, pull:\n\n")
	writeTable(&t, r.cpuRows())
	fmt.Fprintf(&t, "\nThe kernel, least of %d boots with `initcall_debug`, ms: \"Run /init\" at %s, all initcalls %s, the initramfs is unpacked by %s"+
		" after its begin. The slowest initcalls:\n\n", r.Kernel.Boots, ms(r.Kernel.Run), ms(r.Kernel.Initcall), ms(r.Kernel.Unpack))
	rows = [][]string{{"initcall", "ms"}}
	for _, c := range r.Kernel.Slowest {
		rows = append(rows, []string{c.Name, ms(c.Took)})
	}
	writeTable(&t, rows)
	for _, f := range r.Formats {
		fmt.Fprintf(&t, "\n%s by format; the time is the processor's of this machine, in C, not in a VM:\n\n", f.Content)
		rows := [][]string{{"format", "bytes", "unpack, ms"}}
		for _, one := range f.Formats {
			rows = append(rows, []string{one.Name, fmt.Sprint(one.Bytes), ms(one.Unpack)})
		}
		writeTable(&t, rows)
	}
	if len(r.Memory) > 0 {
		t.WriteString("\nThe least memory with which a job succeeds, MiB:\n\n")
		rows := [][]string{{"firmware", "job", "works", "fails"}}
		for _, m := range r.Memory {
			fails := "—"
			if m.Fails > 0 {
				fails = fmt.Sprint(m.Fails)
			}
			rows = append(rows, []string{m.Firmware, m.Job, fmt.Sprint(m.Works), fails})
		}
		writeTable(&t, rows)
	}
	return t.String()
}

func (r *BootReport) bootRows() [][]string {
	head := []string{""}
	for _, b := range r.Boots {
		head = append(head, b.Name)
	}
	rows := [][]string{head}
	row := func(name string, get func(BootTime) string) {
		cells := []string{name}
		for _, b := range r.Boots {
			cells = append(cells, get(b.Median))
		}
		rows = append(rows, cells)
	}
	row("QEMU starts → the kernel's clock", func(b BootTime) string { return ms(b.Firmware) })
	row("→ first step of PID 1", func(b BootTime) string { return ms(b.Kernel) })
	for i, s := range r.Boots[0].Median.Steps {
		row("step "+s.Name, func(b BootTime) string { return ms(b.Steps[i].Wall) + ", CPU " + ms(b.Steps[i].CPU) })
	}
	row("start of execute → first instruction", func(b BootTime) string { return ms(b.First) })
	row("first step → first instruction", func(b BootTime) string { return ms(b.Total) })
	row("of that, without waiting for others", func(b BootTime) string { return ms(b.Ours) })
	row("outcome → QEMU has exited", func(b BootTime) string { return ms(b.Ending) })
	row("all", func(b BootTime) string { return ms(b.Whole) })
	return rows
}

func (r *BootReport) cpuRows() [][]string {
	c := r.CPU
	a, b, p := c.Guest.Ratios(c.Host)
	times := func(x float64) string { return fmt.Sprintf("× %.1f", x) }
	verdict := "over the limit"
	if c.Estimate() < c.Limit {
		verdict = "within the limit"
	}
	return [][]string{
		{"", "ms"},
		{"start of PID 1, \"Run /init\" to its first step, wall time", ms(c.Start)},
		{"its own steps, execute with the sandbox and all that follows", ms(c.Steps)},
		{"sum in this guest", ms(c.Sum)},
		{"arithmetic: guest " + ms(c.Guest.Arithmetic) + ", host " + ms(c.Host.Arithmetic), times(a)},
		{"system calls: guest " + ms(c.Guest.Calls) + ", host " + ms(c.Host.Calls), times(b)},
		{"new pages: guest " + ms(c.Guest.Pages) + ", host " + ms(c.Host.Pages), times(p)},
		{"the sandbox's stub up to the first instruction: guest " + ms(c.GuestStub) + ", host " + ms(c.NativeStub), times(ratio(c.GuestStub, c.NativeStub))},
		{"sum divided by " + fmt.Sprintf("%.1f", c.Ratio()) + ": " + verdict + " of " + ms(c.Limit), ms(c.Estimate())},
		{"start of /init on this machine itself, processor time", ms(c.Native)},
	}
}

func ms(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f", float64(d)/1e6)
	}
	return fmt.Sprintf("%.0f", float64(d)/1e6)
}

// The lines that a document has the report on booting between.
const (
	bootBeginMark = "<!-- ampoule bench boot: written by --update, not by hand -->\n"
	bootEndMark   = "<!-- end of ampoule bench boot -->\n"
)

// Update puts the report between the marks of a document.
func (r *BootReport) Update(path string) error {
	return update(path, bootBeginMark, bootEndMark, r.Text())
}

// Bisect finds the least of least, least+grain, … up to most with which works, and the greatest below it with which it does not: 0 if least
// itself works.
func Bisect(least, most, grain int, works func(int) (bool, error)) (good, bad int, err error) {
	ok, err := works(most)
	if err != nil {
		return 0, 0, err
	}
	if !ok {
		return 0, 0, fmt.Errorf("does not work with %d", most)
	}
	lo, hi := -1, (most-least+grain-1)/grain // lo fails, hi works
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		if ok, err = works(least + mid*grain); err != nil {
			return 0, 0, err
		}
		if ok {
			hi = mid
		} else {
			lo = mid
		}
	}
	if lo >= 0 {
		bad = least + lo*grain
	}
	return min(most, least+hi*grain), bad, nil
}
