package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

const verifyHelp = `
usage: ampoule verify [flags] RECEIPT

Checks the hardware's signature on a receipt and everything that it binds, offline, and prints what is proven.
With --measurement the launch measurement must be one of those; with --manifest and --result the receipt must be
about them. What is not given is printed as not checked. --test-root accepts a simulated TEE, which proves nothing
to anyone else.

Examples:
  ampoule verify --measurement 4f…9a --manifest job.json --result result.tar.age receipt.json
  ampoule verify --json receipt.json`

func verifyVerb(_ context.Context, args []string, std stdio) error {
	fs := flags("verify", verifyHelp, std)
	measurements := fs.String("measurement", "", "launch measurements that are accepted, 96 hex digits each, with commas")
	manifestFile := fs.String("manifest", "", "the manifest that was sent")
	resultFile := fs.String("result", "", "the result as delivered (result.tar.age)")
	root := fs.String("test-root", "", "PEM file with the root of a simulated TEE (test-root.pem)")
	asJSON := fs.Bool("json", false, "print the facts as JSON")
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	var want verify.Expect
	for m := range strings.SplitSeq(*measurements, ",") {
		if m == "" {
			continue
		}
		p, err := evidence.ParseMeasurement(m)
		if err != nil {
			return &exitError{2, err}
		}
		want.Measurements = append(want.Measurements, p)
	}
	if *root != "" {
		b, err := std.readFile(*root, 1<<20)
		if err != nil {
			return err
		}
		r, err := verify.LoadRoot(b)
		if err != nil {
			return fmt.Errorf("--test-root %s: %w", *root, err)
		}
		want.Roots = []verify.Root{r}
	}
	if *manifestFile != "" {
		b, err := std.readFile(*manifestFile, 1<<20)
		if err != nil {
			return err
		}
		want.Manifest = b
	}
	if *resultFile != "" {
		sum, err := hashFile(*resultFile)
		if err != nil {
			return err
		}
		want.ResultSHA256 = sum
	}
	b, err := std.readFile(fs.Arg(0), result.MaxReceipt)
	if err != nil {
		return err
	}
	v, err := verify.Receipt(b, want)
	if v != nil {
		if *asJSON {
			err = errors.Join(err, std.json(v))
		} else {
			fmt.Fprint(std.out, v.Text())
		}
	}
	if err != nil {
		return &exitError{3, err}
	}
	return nil
}

func hashFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}

const openHelp = `
usage: ampoule open --identity FILE --out DIR RESULT

Decrypts a sealed result with an age identity (age-keygen, or an ssh key) and unpacks it to DIR, which must not
exist: results/ is the workload's, log/ its output and the private log, timeline.ndjson the boot. A result that
came in clear (result.tar) needs no identity.

Examples:
  ampoule open --identity key.txt --out opened result.tar.age
  ampoule open --out opened result.tar`

// maxResult bounds what open unpacks, bytes.
const maxResult = 64 << 30

func openVerb(_ context.Context, args []string, std stdio) error {
	fs := flags("open", openHelp, std)
	identity := fs.String("identity", "", "file with age identities, or an ssh private key")
	out := fs.String("out", "", "folder to make")
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	if err := required(fs, "out"); err != nil {
		return err
	}
	return openResult(std, fs.Arg(0), *identity, *out)
}

func openResult(std stdio, path, identity, out string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = f
	if identity != "" {
		b, err := std.readFile(identity, 1<<20)
		if err != nil {
			return err
		}
		ids, err := result.ParseIdentities(b)
		if err != nil {
			return fmt.Errorf("--identity %s: %w", identity, err)
		}
		if r, err = result.Unseal(f, ids); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(out, 0o700); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	return result.ExtractTar(r, out, maxResult)
}
