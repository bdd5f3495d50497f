// Package bench compares pulling, decrypting and unpacking images with what Debian's skopeo and umoci take for it, and
// with what the machine could do. It is for `ampoule bench pull`, `make bench` and tests of memory. For `ampoule bench boot` it has the
// workload, the reading of a console, and the tables.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// A Plan is what a benchmark measures.
type Plan struct {
	Cases  []Case
	Sizes  []int64 // of images of one layer, bytes
	Layers []int   // numbers of layers of images of the same size
	Total  int64   // that size, bytes
	Runs   int     // of each tool for each case
	Cores  int     // for all: registry, tools and parts
}

// A Case is an image to compare tools with.
type Case struct {
	Shape       string      `json:"shape"`
	Compression Compression `json:"compression"`
	Content     Content     `json:"content"`
	layers      []Layer
}

func (c Case) name() string {
	return fmt.Sprintf("%s, %s, %s", c.Shape, c.Compression.name(), c.Content)
}

func (c Compression) name() string {
	if c == Raw {
		return "plain tar"
	}
	return string(c)
}

const mib = 1 << 20

func sizeName(n int64) string {
	if n < mib {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n/mib)
}

// Default is what the documentation shows.
func Default() Plan { return plan(256, []int64{16, 64, 256, 1024, 2048}, []int{1, 10, 100}) }

// Quick is everything in small, to see that it works. Its figures say nothing.
func Quick() Plan { return plan(4, []int64{1, 2}, []int{1, 3}) }

// plan is for cases of so many MiB.
func plan(size int64, sizes []int64, layers []int) Plan {
	p := Plan{Layers: layers, Total: size * mib, Runs: 3, Cores: 2}
	for _, s := range sizes {
		p.Sizes = append(p.Sizes, s*mib)
	}
	files := int(size * 5000 / 256)
	shapes := []struct {
		name string
		of   func(Layer) []Layer
	}{
		{"1 layer of " + sizeName(size*mib), func(l Layer) []Layer {
			l.Files, l.Bytes = 16, size*mib
			return []Layer{l}
		}},
		{"20 layers of " + sizeName(size*mib/16), func(l Layer) []Layer {
			l.Files, l.Bytes = 4, size*mib/16
			return slices.Repeat([]Layer{l}, 20)
		}},
		{fmt.Sprintf("%d files of %s", files, sizeName(size*mib/int64(files))), func(l Layer) []Layer {
			l.Files, l.Bytes, l.Uneven = files, size*mib, true
			return []Layer{l}
		}},
	}
	for n, shape := range shapes {
		for _, comp := range []Compression{Gzip, Zstd, Raw} {
			if comp == Raw && n > 0 {
				continue // nothing new: the other shapes show what layers and files cost
			}
			for _, content := range []Content{Random, Text} {
				p.Cases = append(p.Cases, Case{shape.name, comp, content, shape.of(Layer{Content: content, Compression: comp})})
			}
		}
	}
	return p
}

// Room is about how much the files of a plan take at the highest, bytes: a blob, a peer's copy, what is unpacked.
func (p Plan) Room() int64 { return 3*slices.Max(append(p.Sizes, p.Total)) + 256*mib }

// Only keeps the cases whose name has text in it, and nothing else.
func (p *Plan) Only(text string) {
	p.Cases = slices.DeleteFunc(p.Cases, func(c Case) bool { return !strings.Contains(c.name(), text) })
	p.Sizes, p.Layers = nil, nil
}

// A Report is what was measured. Sizes are in bytes.
type Report struct {
	Machine Machine  `json:"machine"`
	Runs    int      `json:"runs"`
	Tools   []Tool   `json:"tools"`   // ours first
	Missing []string `json:"missing"` // peers that could not be had, and why
	Cases   []Result `json:"cases"`
	Sizes   []Point  `json:"sizes"`
	Layers  []Point  `json:"layers"`
}

// A Result is one case's.
type Result struct {
	Case
	Bytes int64         `json:"bytes"` // of archives, uncompressed
	Tools []Figures     `json:"tools"`
	Parts Parts         `json:"parts_ns"`
	Bound time.Duration `json:"bound_ns"`
	IO    time.Duration `json:"bound_io_ns"`
}

// Figures are a tool's for one case: all runs, and for each quantity the median.
type Figures struct {
	Median Usage   `json:"median"`
	Runs   []Usage `json:"runs"`
	Cannot string  `json:"cannot,omitempty"` // why there are none
}

// A Point is how `ampoule pull` does for an image of some size.
type Point struct {
	Layers int   `json:"layers"`
	Bytes  int64 `json:"bytes"`
	Median Usage `json:"median"`
}

// Rate is what one run of a tool unpacks, bytes of archive a second.
func Rate(bytes int64, took time.Duration) float64 { return float64(bytes) / took.Seconds() }

// Run measures tools, ours first, by a plan, with everything below dir.
func Run(ctx context.Context, p Plan, tools []*Tool, dir string, progress io.Writer) (r *Report, err error) {
	if err := confine(p.Cores); err != nil {
		return nil, err
	}
	s, err := NewShelf(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	r = &Report{Machine: thisMachine(p.Cores, dir), Runs: p.Runs}
	for _, t := range tools {
		r.Tools = append(r.Tools, *t)
	}
	b := &bench{p, tools, s, dir, progress}
	for n, c := range p.Cases {
		fmt.Fprintf(progress, "%2d/%d %s\n", n+1, len(p.Cases), c.name())
		result, err := b.measure(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name(), err)
		}
		r.Cases = append(r.Cases, *result)
	}
	for _, size := range p.Sizes {
		if err := b.point(ctx, &r.Sizes, 1, size); err != nil {
			return nil, err
		}
	}
	for _, layers := range p.Layers {
		if err := b.point(ctx, &r.Layers, layers, p.Total); err != nil {
			return nil, err
		}
	}
	return r, nil
}

type bench struct {
	Plan
	tools    []*Tool
	shelf    *Shelf
	dir      string
	progress io.Writer
}

// measure runs all tools on one image, in turn, after one run of each that does not count. A peer that fails in that one
// cannot do it; ours must.
func (b *bench) measure(ctx context.Context, c Case) (_ *Result, err error) {
	img, err := b.shelf.Make(ctx, "bench", true, c.layers...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.shelf.Remove(img)) }()
	r := &Result{Case: c, Bytes: img.Bytes, Tools: make([]Figures, len(b.tools))}
	var parts []Parts
	for n := -1; n < b.Runs; n++ {
		for i, t := range b.tools {
			f := &r.Tools[i]
			if f.Cannot != "" {
				continue
			}
			debug.FreeOSMemory()
			u, err := t.Run(ctx, b.shelf, img, b.dir)
			switch {
			case err != nil && n < 0 && i > 0 && ctx.Err() == nil:
				f.Cannot = err.Error()
			case err != nil:
				return nil, fmt.Errorf("%s: %w", t.Name, err)
			case n >= 0:
				f.Runs = append(f.Runs, u)
			}
		}
		p, err := b.shelf.parts(img)
		if err != nil {
			return nil, err
		}
		if n >= 0 {
			parts = append(parts, p)
		}
	}
	for i := range r.Tools {
		if f := &r.Tools[i]; f.Cannot == "" {
			f.Median = medianUsage(f.Runs)
		}
	}
	slices.SortFunc(parts, func(p, q Parts) int { return int(p.arithmetic() - q.arithmetic()) })
	r.Parts = parts[(len(parts)-1)/2]
	r.Bound, r.IO = r.Parts.Bound(b.Cores), r.Parts.BoundIO(b.Cores)
	var line []string
	for i, f := range r.Tools {
		if f.Cannot == "" {
			line = append(line, fmt.Sprintf("%s %.0f MiB/s", b.tools[i].Name, Rate(r.Bytes, f.Median.Wall)/mib))
		}
	}
	fmt.Fprintf(b.progress, "      %s\n", strings.Join(line, ", "))
	return r, nil
}

// point adds an image of random bytes in gzip, pulled by ours alone.
func (b *bench) point(ctx context.Context, points *[]Point, layers int, size int64) (err error) {
	fmt.Fprintf(b.progress, "      %d MiB in %d layers\n", size/mib, layers)
	l := Layer{Content: Random, Compression: Gzip, Files: 16, Bytes: size / int64(layers)}
	img, err := b.shelf.Make(ctx, "size", true, slices.Repeat([]Layer{l}, layers)...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.shelf.Remove(img)) }()
	var runs []Usage
	for range b.Runs {
		u, err := b.tools[0].Run(ctx, b.shelf, img, b.dir)
		if err != nil {
			return err
		}
		runs = append(runs, u)
	}
	*points = append(*points, Point{layers, img.Bytes, medianUsage(runs)})
	return nil
}

// medianUsage takes each quantity's lower median by itself.
func medianUsage(runs []Usage) Usage {
	return Usage{
		median(runs, func(u Usage) time.Duration { return u.Wall }),
		median(runs, func(u Usage) time.Duration { return u.Inner }),
		median(runs, func(u Usage) time.Duration { return u.CPU }),
		median(runs, func(u Usage) int64 { return u.Peak }),
		median(runs, func(u Usage) int64 { return u.Anon }),
		median(runs, func(u Usage) int64 { return u.Held }),
	}
}

func median[T ~int64](runs []Usage, get func(Usage) T) T {
	var all []T
	for _, u := range runs {
		all = append(all, get(u))
	}
	slices.Sort(all)
	return all[(len(all)-1)/2]
}
