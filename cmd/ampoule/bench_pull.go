package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/bench"
	"github.com/ampoule-vm/ampoule/internal/debian"
)

const benchPullHelp = `
usage: ampoule bench pull [--runs N] [--cores N] [--suites LIST] [--raw-unpack]
                          [--only TEXT | --quick] [--json] [--update FILE]

Pulls encrypted images from a registry on loopback, with ampoule pull and with skopeo and umoci of Debian suites in turn,
and prints for each image the rates, how they compare, and the peaks of memory. Also how far ampoule pull is from the
machine, and how time and memory go with size and with the number of layers. The images are made here: one layer of
256 MiB, 20 of 16 MiB, 5,000 files; gzip, zstd and plain tar; random bytes and text. Takes about ten minutes.

A rate is MiB of uncompressed archive by the time of the whole processes: skopeo copy --decryption-key from the registry
to an OCI layout, then umoci unpack --rootless. umoci hashes all files for its bundle; --raw-unpack has it not do so.
Blobs and files are in memory (tmpfs) if there is room, else where temporary files go. All of it, the registry too, is
kept on --cores processors.

"Of the machine" is max(S ÷ cores, L) ÷ T. S is the sum of what nobody can leave out, each part measured by itself on
one processor on the same bytes: SHA-256, HMAC-SHA-256 and AES-256-CTR of the blobs, gzip or zstd, SHA-256 of the
archives. L is the longest part of a layer. T is the time that ampoule pull itself reports. "With I/O" has in S also the
receiving of the blobs, the registry's work included, and the writing of as many files.

Memory is the highest resident size of a process, and the files that were there at the highest besides those unpacked:
for the peers, the decrypted layout.

The suites' programs are fetched with apt-get into ~/.cache/ampoule/debian and not installed. --update writes the report
into FILE, between the two marks that it has.

Examples:
  ampoule bench pull
  ampoule bench pull --only "gzip, random"
  ampoule bench pull --runs 5 --update docs/PERFORMANCE.md`

func benchPullVerb(ctx context.Context, args []string, std stdio) (err error) {
	fs := flags("bench pull", benchPullHelp, std)
	runs := fs.Int("runs", 3, "how often each tool pulls each image, after once that does not count")
	cores := fs.Int("cores", 2, "processors for everything")
	suites := fs.String("suites", "bookworm,trixie", "Debian suites to compare with, or \"\"")
	rawUnpack := fs.Bool("raw-unpack", false, "have umoci unpack no more than the files")
	quick := fs.Bool("quick", false, "tiny images, to see that it works")
	only := fs.String("only", "", "only the images whose line in the table has this text")
	asJSON := fs.Bool("json", false, "print all figures as JSON")
	update := fs.String("update", "", "document to write the report into")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if *runs < 1 || *cores < 1 {
		return usagef("--runs %d --cores %d: want at least 1", *runs, *cores)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	tools := []*bench.Tool{bench.Ours(self)}
	var missing []string
	for suite := range strings.FieldsFuncSeq(*suites, func(c rune) bool { return c == ',' }) {
		peer, err := bench.Peer(ctx, suite, debian.CacheDir(), *rawUnpack, std.err)
		switch {
		case errors.Is(err, debian.ErrNotServed):
			std.say("bench: %v", err)
			missing = append(missing, err.Error())
		case err != nil:
			return err
		default:
			tools = append(tools, peer)
		}
	}
	plan := bench.Default()
	if *quick {
		plan = bench.Quick()
	}
	if *only != "" {
		if plan.Only(*only); len(plan.Cases) == 0 {
			return usagef("--only %q: no image has this in its line", *only)
		}
	}
	plan.Runs, plan.Cores = *runs, *cores
	dir, err := bench.Dir(plan.Room())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	report, err := bench.Run(ctx, plan, tools, dir, std.err)
	if err != nil {
		return err
	}
	report.Missing = missing
	if *update != "" {
		if err := report.Update(*update); err != nil {
			return err
		}
	}
	if *asJSON {
		return std.json(report)
	}
	_, err = io.WriteString(std.out, report.Text())
	return err
}
