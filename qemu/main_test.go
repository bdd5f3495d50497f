package qemu

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// behave names, in the environment, what this test binary does instead of running tests: it is then a QEMU that
// misbehaves, or a program that is killed while it runs one.
const behave = "AMPOULE_TEST_QEMU"

func TestMain(m *testing.M) {
	switch b := os.Getenv(behave); b {
	case "":
		os.Exit(m.Run())
	case "supervisor":
		supervise()
	default:
		fakeQEMU(b)
	}
}

// hang also leaves word of itself where the test looks.
func hang() {
	if path := os.Getenv(behave + "_PID"); path != "" {
		os.WriteFile(path+".tmp", []byte(strconv.Itoa(os.Getpid())), 0o600)
		os.Rename(path+".tmp", path)
	}
	for {
		unix.Pause()
	}
}

func console() io.Writer {
	for i, a := range os.Args {
		if path, ok := strings.CutPrefix(a, "file,id=console,path="); ok && os.Args[i-1] == "-chardev" {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				panic(err)
			}
			return f
		}
	}
	panic("no console")
}

func fakeQEMU(b string) {
	switch b {
	case "exits":
		fmt.Fprintln(console(), "Power down")
	case "fails":
		fmt.Fprintln(os.Stderr, "qemu: could not load kernel")
		os.Exit(1)
	case "hangs":
		hang()
	case "panics":
		out := console()
		fmt.Fprint(out, "[ 1.0 ] Kernel panic - not")
		fmt.Fprint(out, " syncing: Attempted to kill init!\nmore text\n")
		hang()
	case "panics and exits":
		fmt.Fprint(console(), "Kernel panic - not syncing: reboots\n")
	case "kvm":
		fmt.Fprintln(os.Stderr, "KVM internal error. Suberror: 1")
		hang()
	case "floods":
		out := console()
		block := []byte(strings.Repeat("x", 1<<20))
		for range maxOutput>>20 + 4 {
			out.Write(block)
		}
	case "breaks vsock":
		for _, a := range os.Args {
			if path, ok := strings.CutPrefix(a, "socket,id=vsock,path="); ok {
				c, err := net.Dial("unix", path)
				if err != nil {
					panic(err)
				}
				c.Write(make([]byte, 64))
			}
		}
		hang()
	case "forks":
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), behave+"=hangs") // it says its number
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			panic(err)
		}
	}
	os.Exit(0)
}

// alive says whether a process still runs; one that was not reaped by its new parent does not.
func alive(pid int) bool {
	if unix.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
