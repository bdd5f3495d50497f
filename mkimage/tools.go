package mkimage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// tools is what building a kernel takes: a program or a header, and the Debian package that brings it.
var tools = []struct{ what, pkg string }{
	{"bc", "bc"},
	{"bison", "bison"},
	{"flex", "flex"},
	{"gcc", "gcc"},
	{"ld", "binutils"},
	{"make", "make"},
	{"patch", "patch"},
	{"perl", "perl-base"},
	{"tar", "tar"},
	{"xz", "xz-utils"},
	{"zstd", "zstd"},
	{"/usr/include/stdio.h", "libc6-dev"},
	{"/usr/include/gelf.h", "libelf-dev"}, // objtool, which checks the kernel's own objects
}

// Missing lists the Debian packages that have to be installed before a kernel can be built here.
func Missing() []string {
	var pkgs []string
	for _, t := range tools {
		var err error
		if strings.HasPrefix(t.what, "/") {
			_, err = os.Stat(t.what)
		} else {
			_, err = exec.LookPath(t.what)
		}
		if err != nil {
			pkgs = append(pkgs, t.pkg)
		}
	}
	return pkgs
}

// toolchain is the part of this machine that enters the kernel: the same source gives other bytes with another one.
type toolchain struct {
	gcc, ld string
	zstd    string // compresses the kernel, and is only recorded: a cached kernel is taken whatever made it small
}

func findToolchain(ctx context.Context) (t toolchain, err error) {
	if missing := Missing(); len(missing) > 0 {
		return t, fmt.Errorf("building a kernel needs more than is installed here; run\n  apt-get install --no-install-recommends %s",
			strings.Join(missing, " "))
	}
	for _, v := range []struct {
		to   *string
		name string
	}{{&t.gcc, "gcc"}, {&t.ld, "ld"}, {&t.zstd, "zstd"}} {
		out, err := output(ctx, "", v.name, "--version")
		if err != nil {
			return t, err
		}
		line, _, _ := bytes.Cut(out, []byte("\n"))
		*v.to = string(line)
	}
	return t, nil
}
