package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"unicode"

	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
)

// Bounds of what is read of a broker's log after one run.
const (
	maxBrokerLog  = 16 << 20 // bytes
	maxBrokerLine = 64 << 10
	maxDenials    = 100
)

// A brokerLog is what ampoule kbs --audit writes, from where it ended when the run began.
type brokerLog struct {
	file string
	from int64
}

// openBrokerLog remembers the end of the log. One that is not there yet is empty.
func openBrokerLog(file string) (*brokerLog, error) {
	if file == "" {
		return nil, nil
	}
	i, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &brokerLog{file, 0}, nil
	case err != nil:
		return nil, fmt.Errorf("--broker-log: %w", err)
	case !i.Mode().IsRegular():
		return nil, fmt.Errorf("--broker-log %s: not a file", file)
	}
	return &brokerLog{file, i.Size()}, nil
}

// denials gives what the broker has refused since, at most 100.
func (l *brokerLog) denials() (out []kbsserver.Decision, err error) {
	f, err := os.Open(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--broker-log: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(l.from, io.SeekStart); err != nil {
		return nil, fmt.Errorf("--broker-log: %w", err)
	}
	lines := bufio.NewScanner(io.LimitReader(f, maxBrokerLog))
	lines.Buffer(nil, maxBrokerLine)
	for lines.Scan() && len(out) < maxDenials {
		d, err := kbsserver.ParseDecision(lines.Bytes())
		if err != nil {
			return out, fmt.Errorf("--broker-log %s: %w", l.file, err)
		}
		if d.Decision == kbsserver.Refused || d.Decision == kbsserver.Deny || d.Cause != "" {
			out = append(out, d)
		}
	}
	if err := lines.Err(); err != nil {
		return out, fmt.Errorf("--broker-log %s: %w", l.file, err)
	}
	return out, nil
}

// explain is a decision for the owner: what was refused to whom, by which claim, and what to do.
func explain(d kbsserver.Decision, run runFacts) string {
	what := "its evidence"
	if d.Resource != "" {
		what = d.Resource
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the broker refused %s to a %s guest (session %s, %s)\n", plain(what), plain(string(d.TEE)), plain(d.Session), d.Time.Format("15:04:05"))
	for _, f := range []struct{ name, text string }{
		{"claim", d.Claim}, {"expected", d.Expected}, {"actual", d.Actual}, {"cause", d.Cause}, {"next", next(d, run)},
	} {
		if f.text != "" && (f.name != "cause" || d.Claim == "" || d.Actual == "") {
			fmt.Fprintf(&b, "  %-9s %s\n", f.name, plain(f.text))
		}
	}
	return b.String()
}

// plain keeps what a guest made up from steering a terminal.
func plain(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
		return strconv.Quote(s)
	}
	return s
}

// next is the step that changes the answer. What the guest has and what this run launched are compared, since another guest
// may ask the same broker at the same time.
func next(d kbsserver.Decision, run runFacts) string {
	const dry = "ampoule run --dry-run prints both values of this run"
	switch d.Claim {
	case "measurement":
		if d.Actual == run.Measurement.String() {
			return "this is the measurement of this run: if the image, its command line, firmware and vCPUs are what you mean, put it into the rule"
		}
		return "this run's measurement is " + run.Measurement.String() + ": another guest asked, or another image was started; " + dry
	case "init_data":
		if strings.HasPrefix(d.Actual, run.Initdata) {
			return "this is the digest of this run's manifest: if the manifest is what you mean, put it into the rule"
		}
		return "this run's manifest has the digest " + run.Initdata + ": another guest asked, or the launch was bound to another manifest; " + dry
	}
	for _, a := range advice {
		if strings.HasPrefix(d.Claim, a.claim) && (a.cause == "" || strings.Contains(d.Cause, a.cause)) {
			return a.next
		}
	}
	return "the broker's own log has the same with its time"
}

// advice is in order: the first row that fits is it.
var advice = []struct{ claim, cause, next string }{
	{"resource policy", "", "actual is the line of the policy in Rego that did not hold; compare its value with what you mean to allow"},
	{"resource", "", "no rule of policy.json matches this path: write one"},
	{"policy.", "", "the launcher asked for a guest that its host can read or move: launch it with the guest policy bits debug and migrate off"},
	{"policy", "", "the policy cannot be read, and then everything is denied: mend it"},
	{"td_attributes.", "", "the launcher asked for a guest that its host can read or move: launch it without this attribute"},
	{"vmpl", "", "the report is from under a paravisor or SVSM, whose code it says nothing of: start the guest at VMPL 0"},
	{"tcb.", "", "the platform's firmware is older than the rule takes: update it, or lower min_tcb"},
	{"reported_tcb", "", "the certificate is of another patch level than the report: refresh the certificates of the host"},
	{"tcb_status", "", "Intel holds the platform's patch level to be bad: update it, or start the broker with --tcb-status"},
	{"rtmr", "", "these registers tell which image runs: if it is the one that you mean, put the actual value into the rule"},
	{"pcr", "", "these registers tell which image runs: if it is the one that you mean, put the actual value into the rule"},
	{"mr_seam", "", "another TDX module runs on this host: if you trust it, put the actual value into the rule"},
	{"simulated", "", "the processor is simulated and the rule refuses that: say allow_simulated for a trial, or run on hardware"},
	{"tee", "", "the rule, or the broker, takes other kinds of evidence; sample evidence needs --allow-sample and a rule that lists it"},
	{"report_data", "", "the evidence is of another handshake or key: somebody replays it, or the guest is broken"},
	{"nonce", "", "the evidence is of another handshake: somebody replays it, or the guest is broken"},
	{"", "unknown authority", "the processor is not under the roots of the broker: a simulated one needs ampoule kbs --test-root with test-root.pem of this run, a real one needs none"},
	{"", "no root given", "the broker has the root of another simulated processor, or of a real one: give ampoule kbs --test-root the test-root.pem of this run"},
	{"", "certificate in the evidence", "the host gives its guests no certificate: give the broker a folder of them with --certs"},
	{"", "not released", "the policy allows it, and it is not there: upload it under exactly this path (ampoule kbs put)"},
}
