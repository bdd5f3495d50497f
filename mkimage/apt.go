package mkimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// apt is Debian's archive as this machine is set up for it. It needs no privileges: nothing is installed.
type apt struct {
	tmp string // where a package of 150 MB may lie for a while
}

func (apt) versions(ctx context.Context, pkg string) ([]string, error) {
	out, err := output(ctx, "", "apt-cache", "madison", pkg)
	if err != nil {
		return nil, err
	}
	return parseMadison(string(out), pkg), nil
}

// parseMadison reads lines of "package | version | archive suite arch Packages", newest first.
func parseMadison(out, pkg string) (versions []string) {
	for line := range strings.Lines(out) {
		f := strings.Split(line, "|")
		if len(f) != 3 || strings.TrimSpace(f[0]) != pkg || !strings.HasSuffix(strings.TrimSpace(f[2]), " Packages") {
			continue
		}
		if v := strings.TrimSpace(f[1]); series(pkg, v) {
			versions = append(versions, v)
		}
	}
	return versions
}

func (a apt) download(ctx context.Context, pkg, version, tarball string, w io.Writer) error {
	dir, err := os.MkdirTemp(a.tmp, ".apt-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if _, err := output(ctx, dir, "apt-get", "-qq", "download", pkg+"="+version); err != nil {
		return fmt.Errorf("%w (are the package lists old? run `apt-get update`)", err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get left %d packages, want one: %w", len(debs), err)
	}
	return unpackDeb(ctx, debs[0], "usr/src/"+tarball, w)
}

// unpackDeb writes one regular file of a package to w. dpkg-deb knows the package format, so that we need not.
func unpackDeb(ctx context.Context, deb, name string, w io.Writer) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	copyErr := copyFromTar(pipe, name, w)
	// What follows the file is read too, so that dpkg-deb ends by itself and its exit status means something.
	_, drainErr := io.Copy(io.Discard, pipe)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("dpkg-deb %s: %w: %s", filepath.Base(deb), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return errors.Join(copyErr, drainErr)
}

func copyFromTar(r io.Reader, name string, w io.Writer) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the package has no %s", name)
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg && path.Clean(h.Name) == name {
			_, err := io.Copy(w, t)
			return err
		}
	}
}

// output runs a program of the system in English and returns what it wrote; its complaints are in the error.
func output(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(append([]string{name}, args...), " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
