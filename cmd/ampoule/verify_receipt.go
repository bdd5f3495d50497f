package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// receiptFlags are those of ampoule verify RECEIPT.
type receiptFlags struct {
	file, manifest, result, identity string
	strict, collect, simulated       bool
	vendors                          verify.Vendors // whom collect asks
}

// verify judges a receipt and prints what it proves.
func (r *receiptFlags) verify(ctx context.Context, std stdio, want verify.Expect, asJSON bool) (err error) {
	want.Strict = r.strict
	if r.manifest != "" {
		if want.Manifest, err = std.readFile(r.manifest, 1<<20); err != nil {
			return err
		}
	}
	if r.identity != "" && r.result == "" {
		return usagef("--identity goes with --result")
	}
	if r.result != "" {
		if want.ResultSHA256, want.TarSHA256, err = resultDigests(std, r.result, r.identity); err != nil {
			return err
		}
	}
	b, err := std.readFile(r.file, result.MaxReceipt)
	if err != nil {
		return err
	}
	if r.collect {
		if b, err = r.completed(ctx, std, b, want); err != nil {
			return err
		}
	}
	v, err := verify.Receipt(b, want)
	if v != nil {
		if asJSON {
			err = errors.Join(err, std.json(v))
		} else {
			fmt.Fprint(std.out, v.Text())
		}
	}
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown && !r.simulated {
		err = fmt.Errorf("%w; a receipt of a simulated TEE needs --test-root", err)
	}
	if err != nil {
		return &exitError{3, err}
	}
	return nil
}

// completed asks for what the receipt lacks, and writes it back with that.
func (r *receiptFlags) completed(ctx context.Context, std stdio, b []byte, want verify.Expect) ([]byte, error) {
	if r.file == "-" {
		return nil, usagef("--collect writes into RECEIPT, which cannot be standard input")
	}
	// A receipt that does not hold is not worth asking for.
	bare := want
	bare.Strict = false
	if v, err := verify.Receipt(b, bare); v == nil && !errors.Is(err, verify.ErrNoCertificate) {
		return nil, &exitError{3, err}
	}
	full, err := verify.Collect(ctx, r.vendors, b, verify.Options{Roots: want.Roots, Intel: want.Intel, Now: want.Now})
	if err != nil {
		return nil, fmt.Errorf("--collect: %w", err)
	}
	return full, std.write(r.file, full)
}

// moment reads --at: a date, now, or nothing.
func moment(at string) (time.Time, error) {
	switch at {
	case "":
		return time.Time{}, nil
	case "now":
		return time.Now(), nil
	}
	t, err := time.Parse(time.DateOnly, at)
	if err != nil {
		return t, usagef("--at %q: want a date as 2026-01-31, or now", at)
	}
	return t, nil
}

// resultDigests are the SHA-256 of a result's file and, where an identity opens it, of the tar inside.
func resultDigests(std stdio, path, identity string) (file, tar []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if identity == "" {
		h := sha256.New()
		_, err = io.Copy(h, f)
		return h.Sum(nil), nil, err
	}
	ids, err := identities(std, identity)
	if err != nil {
		return nil, nil, err
	}
	o, err := result.Open(f, ids)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	defer o.Close()
	if _, err := io.Copy(io.Discard, o); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	d := o.Digests()
	return d.Sealed[:], d.Tar[:], nil
}

// completeSimulated adds to the receipt of a simulated TEE what its chip has, where it has something.
func completeSimulated(std stdio, path, pspDir string, kind evidence.Kind) error {
	if path == "" {
		return nil
	}
	chip, err := psp.New(pspDir)
	if err != nil {
		return fmt.Errorf("--psp: %w", err)
	}
	c := chip.Collateral(kind)
	if c == nil {
		std.say("the simulated chip in %s is an older version's and has no collateral for receipts; remove it to get a new one", pspDir)
		return nil
	}
	b, err := std.readFile(path, result.MaxReceipt)
	if err != nil {
		return err
	}
	full, err := verify.Attach(b, c)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err) // the guest's fault: nothing of ours made it
	}
	return std.write(path, full)
}
