package qemu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestProbeBoot(t *testing.T) {
	path, err := exec.LookPath(DefaultBinary)
	if err != nil {
		t.Skip("no QEMU on this machine: apt install qemu-system-x86")
	}
	if err := probeBoot(t.Context(), path, TCG); err != nil {
		t.Error(err)
	}
	if err := probeBoot(t.Context(), path, "nonsense"); err == nil {
		t.Error("an accelerator that does not exist works")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := probeBoot(ctx, path, TCG); err == nil {
		t.Error("works when cancelled")
	}
}

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", dir)
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	intel := file("intel", "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx sse\n")
	amd := file("amd", "flags\t\t: svm\n")
	none := file("none", "model name\t: vmx svm\nflags\t\t: fpu hypervisor vmxnot\n")
	kvm := file("kvm", "")
	booted := 0
	works := func(context.Context) error { booted++; return nil }
	fails := func(context.Context) error { booted++; return errors.New("KVM internal error") }
	ask := func(name string, want Accel, wantBoots int, qemu, cpu, kvm string, boot func(context.Context) error) {
		t.Helper()
		booted = 0
		if got := probeAt(t.Context(), qemu, cpu, kvm, boot); got != want || booted != wantBoots {
			t.Errorf("%s: %s after %d boots, want %s after %d", name, got, booted, want, wantBoots)
		}
	}
	a, b := os.Args[0], "/bin/sh"
	ask("no virtualization", TCG, 0, a, none, kvm, works)
	ask("no cpuinfo", TCG, 0, a, dir+"/gone", kvm, works)
	ask("no KVM", TCG, 0, a, intel, dir+"/gone", works)
	ask("works", KVM, 1, a, intel, kvm, works)
	ask("is kept", KVM, 0, a, intel, kvm, fails)
	ask("another QEMU", TCG, 1, b, amd, kvm, fails)
	ask("a failure is kept too", TCG, 0, b, amd, kvm, works)
	file("ampoule/accel.json", "{")
	ask("a broken cache", KVM, 1, b, amd, kvm, works)
	file("ampoule/accel.json", `{"Key":{"BootID":"another","QEMU":"/bin/sh"},"Accel":"tcg"}`)
	ask("another boot", KVM, 1, b, amd, kvm, works)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	os.Remove(filepath.Join(dir, "ampoule", "accel.json"))
	if got := probeAt(ctx, a, intel, kvm, fails); got != TCG {
		t.Errorf("cancelled: %s", got)
	}
	ask("a cancelled answer is not kept", KVM, 1, a, intel, kvm, works)
	t.Setenv("XDG_CACHE_HOME", "/proc/no")
	ask("no place to keep it", KVM, 1, a, intel, kvm, works)
}
