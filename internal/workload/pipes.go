package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The stub's descriptors, after standard input, output and error.
const (
	specFD  = 3
	faultFD = 4
	passFD  = 5 // there only if there are Spec.Services
)

// What the stub says on faultFD: ready when the program begins, and how it ended when it has; else why there is no
// sandbox, or, after programFault, no program.
const (
	ready        = "ready\n"
	programFault = "program: "
)

// maxFault bounds what a stub can say, bytes.
const maxFault = 4 << 10

// pipes are the stub's files: /dev/null, stdout, stderr, the spec, one for its fault, and one on which it passes its
// listeners.
type pipes struct {
	null               *os.File
	out, err, spec, up pipe
	pass               pipe // a pair of sockets; empty if nothing is to be passed
	cgroup             int  // the stub's descriptor of the workload's; 0: none
	program            int  // the stub's descriptor of what it executes; 0: there is a path to it
	copied             chan struct{}
	copiers            int
}

type pipe struct{ r, w *os.File }

func newPipes(pass bool) (*pipes, error) {
	p := &pipes{copied: make(chan struct{})}
	var err error
	if p.null, err = os.Open(os.DevNull); err != nil {
		return nil, err
	}
	for _, q := range []*pipe{&p.out, &p.err, &p.spec, &p.up} {
		if q.r, q.w, err = os.Pipe(); err != nil {
			p.close()
			return nil, err
		}
	}
	if pass {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			p.close()
			return nil, fmt.Errorf("socket pair: %w", err)
		}
		p.pass = pipe{os.NewFile(uintptr(pair[0]), "pass"), os.NewFile(uintptr(pair[1]), "pass")}
	}
	return p, nil
}

// child are the stub's ends. Those of this process do not block; these do, as programs expect of their standard
// output.
func (p *pipes) child() []*os.File {
	files := []*os.File{p.null, p.out.w, p.err.w, p.spec.r, p.up.w}
	if p.pass.w != nil {
		files = append(files, p.pass.w)
	}
	for _, f := range files {
		unix.SetNonblock(int(f.Fd()), false)
	}
	return files
}

func (p *pipes) closeChild() {
	for _, f := range []*os.File{p.null, p.out.w, p.err.w, p.spec.r, p.up.w, p.pass.w} {
		if f != nil {
			f.Close()
		}
	}
}

func (p *pipes) close() {
	for _, f := range []*os.File{p.null, p.out.r, p.out.w, p.err.r, p.err.w, p.spec.r, p.spec.w, p.up.r, p.up.w, p.pass.r, p.pass.w} {
		if f != nil {
			f.Close()
		}
	}
}

// talk starts to copy the output and sends the spec, which is never in argv or the environment. The channel gives what
// the stub has said once it has ended.
func (p *pipes) talk(s Spec) <-chan account {
	p.copy(s.Stdout, p.out.r)
	p.copy(s.Stderr, p.err.r)
	told := make(chan account, 1)
	go func() {
		o := orderOf(s)
		o.Cgroup, o.Program = p.cgroup, p.program
		sent := json.NewEncoder(p.spec.w).Encode(o)
		p.spec.w.Close()
		said, err := io.ReadAll(io.LimitReader(p.up.r, maxFault))
		told <- judge(string(said), errors.Join(sent, err))
	}()
	return told
}

// An account is what a stub says: err, why there was no program, or that there was one, and how it ended if it has.
type account struct {
	err    error
	ending *ending
}

// judge reads what the stub said.
func judge(said string, err error) account {
	text, began := strings.CutPrefix(said, ready)
	if began && text == "" {
		return account{}
	}
	if fault, ok := strings.CutPrefix(text, programFault); ok {
		return account{err: fmt.Errorf("%w: %s", ErrProgram, fault)}
	}
	if began {
		e, err := parseEnding(text)
		if err != nil {
			return account{err: err}
		}
		return account{ending: &e}
	}
	if text == "" {
		text = "the stub ended without a word"
	}
	return account{err: errors.Join(fmt.Errorf("sandbox: %s", text), err)}
}

// copy goes on to read where w fails, for a full pipe would stop the program.
func (p *pipes) copy(w io.Writer, r io.Reader) {
	if w == nil {
		w = io.Discard
	}
	p.copiers++
	go func() {
		if _, err := io.Copy(w, r); err != nil {
			io.Copy(io.Discard, r)
		}
		p.copied <- struct{}{}
	}()
}

// drainGrace bounds the wait for the rest of the output of processes that are gone.
const drainGrace = 5 * time.Second

// drain waits until all output is copied. The namespace is dead, so no writer is left and the pipes end; the bound is
// for what the kernel closes later, like descriptors on their way through a socket.
func (p *pipes) drain() {
	end := time.Now().Add(drainGrace)
	p.out.r.SetReadDeadline(end)
	p.err.r.SetReadDeadline(end)
	for range p.copiers {
		<-p.copied
	}
}
