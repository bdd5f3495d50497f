// Command ampoule builds, runs and checks one-shot confidential VMs from the host's side.
//
// Exit codes: 0 ok, 1 failure, 2 usage, 3 evidence or policy refused, 4 workload failed, 5 the VM never reported.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := dispatch(ctx, os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// stdio is what a verb may read and write besides the files that it is given.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// say prints a line of progress.
func (s stdio) say(format string, args ...any) { fmt.Fprintf(s.err, format+"\n", args...) }

// A verb is one sub-command. run parses its own flags.
type verb struct {
	name, line string
	run        func(ctx context.Context, args []string, std stdio) error
}

var verbs = []verb{
	{"demo", "one sealed run, end to end, on this machine", demoVerb},
	{"build", "make an image: kernel and initramfs, UKI, disks; or check one", buildVerb},
	{"run", "start a VM, give it a manifest, collect result and receipt", runVerb},
	{"trace", "show where the time of a run went", traceVerb},
	{"measure", "say what a VM will measure, before it boots", measureVerb},
	{"policy", "make key broker policies from measurements", policyVerb},
	{"verify", "check a receipt and print what it proves", verifyVerb},
	{"open", "decrypt a sealed result", openVerb},
	{"encrypt", "encrypt the layers of an OCI image", encryptVerb},
	{"keyprovider", "wrap layer keys for skopeo and buildah", keyproviderVerb},
	{"pull", "unpack an image on this machine as a guest would", pullVerb},
	{"kbs", "serve keys to attested VMs (development broker)", kbsVerb},
	{"manifest", "check, digest, wrap or pin a manifest", manifestVerb},
	{"selftest", "run an image's checklist, on hardware or simulated", selftestVerb},
	{"doctor", "examine this machine, a firmware, a kernel, an image", doctorVerb},
	{"bench", "time whole runs, as medians", benchVerb},
	{"version", "print the version", versionVerb},
}

const usage = `ampoule runs one computation, once, inside a confidential VM.

usage: ampoule VERB [flags]

%s
Examples:
  ampoule demo
  ampoule run --image out/simulation --manifest job.json --out out/job

ampoule VERB -h explains a verb. Exit codes: 0 ok, 1 failure, 2 usage,
3 evidence or policy refused, 4 workload failed, 5 the VM never reported.
`

// An exitError is a failure with an exit code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &exitError{2, fmt.Errorf(format, args...)} }

func dispatch(ctx context.Context, args []string, std stdio) int {
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" || args[0] == "help" {
		var list strings.Builder
		for _, v := range verbs {
			fmt.Fprintf(&list, "  %-9s %s\n", v.name, v.line)
		}
		fmt.Fprintf(std.err, usage, list.String())
		if len(args) == 0 {
			return 2
		}
		return 0
	}
	for _, v := range verbs {
		if v.name != args[0] {
			continue
		}
		err := v.run(ctx, args[1:], std)
		if err == nil || errors.Is(err, flag.ErrHelp) {
			return 0
		}
		code := 1
		if e, ok := errors.AsType[*exitError](err); ok {
			code = e.code
		}
		fmt.Fprintf(std.err, "error: %v\n", err)
		return code
	}
	fmt.Fprintf(std.err, "error: no verb %q; ampoule -h lists them\n", args[0])
	return 2
}

// flags makes the flag set of a verb. text is its hand-written help, printed before the flags.
func flags(name, text string, std stdio) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // parse says what is wrong, once
	fs.Usage = func() {
		fmt.Fprintf(std.err, "%s\n\nFlags:\n", strings.TrimSpace(text))
		fs.VisitAll(func(f *flag.Flag) {
			fmt.Fprintf(std.err, "  --%-16s %s", f.Name, f.Usage)
			if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0s" {
				fmt.Fprintf(std.err, " (%s)", f.DefValue)
			}
			fmt.Fprintln(std.err)
		})
	}
	return fs
}

// parse reads the flags and checks how many words are left.
func parse(fs *flag.FlagSet, args []string, words int) error {
	help := fs.Usage
	fs.Usage = func() {}
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		help()
		return err
	case err != nil:
		return usagef("%v; ampoule %s -h explains it", err, fs.Name())
	}
	if fs.NArg() != words {
		return usagef("%d arguments after the flags, want %d: %q; ampoule %s -h explains it", fs.NArg(), words, fs.Args(), fs.Name())
	}
	return nil
}

// required refuses flags that were left empty.
func required(fs *flag.FlagSet, names ...string) error {
	for _, n := range names {
		if fs.Lookup(n).Value.String() == "" {
			return usagef("--%s is missing; ampoule %s -h explains it", n, fs.Name())
		}
	}
	return nil
}

func (s stdio) json(v any) error {
	e := json.NewEncoder(s.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// readFile reads a file of at most limit bytes; "-" is standard input.
func (s stdio) readFile(path string, limit int64) ([]byte, error) {
	r := s.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return b, err
}
