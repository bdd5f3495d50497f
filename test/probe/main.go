// Command probe is the workload of the VM tests: a static program that does what its arguments say.
package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	for _, arg := range os.Args[1:] {
		verb, value, _ := strings.Cut(arg, "=")
		switch verb {
		case "ran": // leaves a mark
			must(os.WriteFile("results/ran", []byte("yes\n"), 0o644))
		case "say":
			fmt.Println(value)
			fmt.Fprintln(os.Stderr, value)
		case "copy": // a dataset into the results
			b, err := os.ReadFile(filepath.Join("datasets", value))
			must(err)
			must(os.WriteFile(filepath.Join("results", value), b, 0o644))
		case "digest": // of a dataset, as it is read
			f, err := os.Open(filepath.Join("datasets", value))
			must(err)
			h := sha256.New()
			_, err = io.Copy(h, f)
			must(err)
			must(os.WriteFile("results/"+value+".sha256", fmt.Appendf(nil, "%x", h.Sum(nil)), 0o644))
		case "random": // that many bytes, and their digest
			n, err := strconv.Atoi(value)
			must(err)
			b := make([]byte, n)
			rand.Read(b)
			must(os.WriteFile("results/random", b, 0o644))
			must(os.WriteFile("results/random.sha256", fmt.Appendf(nil, "%x", sha256.Sum256(b)), 0o644))
		case "look":
			must(os.WriteFile("results/look.json", look(), 0o644))
		case "allocate": // that many MiB, touched
			n, err := strconv.Atoi(value)
			must(err)
			var all [][]byte
			for range n {
				b := make([]byte, 1<<20)
				for i := 0; i < len(b); i += 4096 {
					b[i] = 1
				}
				all = append(all, b)
			}
			fmt.Println(len(all))
		case "fork": // that many children, and how many there could be
			n, err := strconv.Atoi(value)
			must(err)
			started := 0
			for range n {
				if exec.Command("/probe", "sleep").Start() == nil {
					started++
				}
			}
			must(os.WriteFile("results/forked", strconv.AppendInt(nil, int64(started), 10), 0o644))
		case "escape":
			must(os.WriteFile("results/escape.json", escape(), 0o644))
		case "bombs":
			must(os.WriteFile("results/bombs.json", bombs(), 0o644))
		case "litter":
			litter()
		case "socket": // in the results, where it stays
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "results/socket", Net: "unix"})
			must(err)
			l.SetUnlinkOnClose(false)
		case "stubborn": // with so many children
			n, err := strconv.Atoi(value)
			must(err)
			stubborn(n)
		case "hang": // with a child that hangs as well, and no handler for SIGTERM
			c := exec.Command("/probe", "sleep")
			must(c.Start())
			fallthrough
		case "sleep":
			time.Sleep(time.Hour)
		case "exit":
			n, err := strconv.Atoi(value)
			must(err)
			os.Exit(n)
		default:
			fmt.Fprintln(os.Stderr, "probe: what is", arg)
			os.Exit(99)
		}
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(98)
	}
}

// look tries every door of the sandbox and writes down what happened.
func look() []byte {
	seen := map[string]string{}
	note := func(name string, err error) {
		seen[name] = "open"
		if err != nil {
			seen[name] = err.Error()
		}
	}
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "Uid", "CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp":
			seen[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	const vsock = 40 // AF_VSOCK
	_, err := syscall.Socket(vsock, syscall.SOCK_STREAM, 0)
	note("vsock", err)
	note("write dataset", os.WriteFile("datasets/new", nil, 0o644))
	note("write result", os.WriteFile("results/new", nil, 0o644))
	note("mount", syscall.Mount("none", "/tmp", "tmpfs", 0, ""))
	note("user namespace", syscall.Unshare(syscall.CLONE_NEWUSER))
	_, err = os.ReadDir("/sys/kernel/config/tsm/report")
	note("tsm", err)
	_, err = os.Stat("/dev/vsock")
	note("dev vsock", err)
	for _, f := range []string{"/dev/tpmrm0", "/dev/tpm0"} {
		d, err := os.OpenFile(f, os.O_RDWR, 0)
		note(f, err)
		d.Close()
	}
	_, err = net.DialTimeout("tcp", "10.0.2.2:80", time.Second)
	note("network", err)
	_, err = net.DialTimeout("tcp", "169.254.169.254:80", time.Second)
	note("metadata service", err)
	links, _ := net.Interfaces()
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	seen["links"] = strings.Join(names, " ")
	procs, _ := filepath.Glob("/proc/[0-9]*")
	seen["processes"] = strconv.Itoa(len(procs))
	seen["pid"] = strconv.Itoa(os.Getpid())
	seen["environment"] = strings.Join(os.Environ(), " ")
	cmdline, _ := os.ReadFile("/proc/cmdline")
	seen["command line"] = string(cmdline)
	b, _ := json.MarshalIndent(seen, "", "  ")
	return b
}
