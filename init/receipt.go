package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// receipt says what this run did with the result that has these digests, and has the hardware sign that. The evidence is of now: nothing older is about a statement that did not exist.
func (r *run) receipt(ctx context.Context, d result.Digests) ([]byte, error) {
	p := r.predicate()
	if r.dev.Kind() == evidence.TDX {
		// The log comes from memory that the host wrote, and registers hold digests only: its texts are signed here.
		ev, err := r.dev.Evidence(ctx, [64]byte{})
		if err != nil {
			return nil, because(result.NoTEE, err)
		}
		if len(ev.EventLog) > 0 {
			p.Build.EventLog = fmt.Sprintf("%x", sha256.Sum256(ev.EventLog))
		}
	}
	statement, err := result.NewStatement(p, r.forms(d)...)
	if err != nil {
		return nil, err
	}
	ev, err := r.dev.Evidence(ctx, result.ReportData(statement))
	if err != nil {
		return nil, because(result.NoTEE, err)
	}
	body, err := ev.Whole().JSON()
	if err != nil {
		return nil, err
	}
	return result.NewReceipt(statement, string(ev.Kind), body)
}

// forms are the subjects of the statement.
func (r *run) forms(d result.Digests) []result.Subject {
	name := result.ClearName
	if r.sealed() {
		name = result.SealedName
	}
	return []result.Subject{result.NewSubject(name, d.Sealed[:]), result.NewSubject(result.TarName, d.Tar[:])}
}

// provenance is the part of the predicate that says where the run was, and what it took.
func (r *run) provenance(p *result.Predicate) {
	p.Completed = time.Now().UTC().Format(result.TimeFormat)
	p.Build = result.Build{Init: version(), Go: runtime.Version(), Kernel: kernelRelease(), Cmdline: r.cmdlineDigest()}
	p.TEE = result.TEE{Kind: string(r.dev.Kind()), TCB: hex.EncodeToString(r.tcb)}
	if r.policy != nil {
		p.ImagePolicy = hex.EncodeToString(r.policy.digest[:])
	}
	u := r.output.Usage
	p.Resources = result.Resources{MemoryPeak: u.MemoryPeak, CPU: u.CPU, ProcessesPeak: u.PIDsPeak, OOMKills: u.OOMKills, Pulled: r.pulled.Load()}
}

// cmdlineDigest is of the command line as the kernel has it, which does not change. It was read once already.
func (r *run) cmdlineDigest() string {
	line, err := r.commandLine()
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.TrimSuffix(line, "\n"))))
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
