package bench

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Text is the report for a terminal: tables of Markdown, their columns aligned.
func (r *Report) Text() string {
	var t strings.Builder
	fmt.Fprintf(&t, "- %s, %d cores, %d GiB, Linux %s, %s\n", r.Machine.CPU, r.Machine.Cores,
		(r.Machine.Memory+1<<29)>>30, r.Machine.Kernel, r.Machine.Go)
	fmt.Fprintf(&t, "- blobs and files on %s; medians of %d runs\n", r.Machine.Files, r.Runs)
	for _, tool := range r.Tools[1:] {
		fmt.Fprintf(&t, "- %s: %s\n", tool.Name, tool.What)
	}
	for _, m := range r.Missing {
		fmt.Fprintf(&t, "- not measured: %s\n", m)
	}
	t.WriteString("\nMiB of archive a second:\n\n")
	writeTable(&t, r.rates())
	t.WriteString("\nPeak of resident memory + of files held besides those unpacked, MiB:\n\n")
	writeTable(&t, r.memory())
	if why := r.cannots(); len(why) > 0 {
		fmt.Fprintf(&t, "\n- %s\n", strings.Join(why, "\n- "))
	}
	if len(r.Sizes) > 0 {
		t.WriteString("\n`ampoule pull` by size, random bytes in gzip:\n\n")
		writeTable(&t, points(r.Sizes))
	}
	if len(r.Layers) > 0 {
		t.WriteString("\n`ampoule pull` by number of layers, likewise:\n\n")
		writeTable(&t, points(r.Layers))
	}
	return t.String()
}

func (r *Report) rates() [][]string {
	head := []string{"encrypted image"}
	for _, tool := range r.Tools {
		head = append(head, tool.Name)
	}
	for _, tool := range r.Tools[1:] {
		head = append(head, "× "+tool.Name)
	}
	rows := [][]string{append(head, "of the machine", "with I/O")}
	for _, c := range r.Cases {
		row := []string{c.name()}
		ours := Rate(c.Bytes, c.Tools[0].Median.Wall)
		var times []string
		for n, f := range c.Tools {
			rate, ratio := "cannot", "—"
			if f.Cannot == "" {
				rate, ratio = fmt.Sprintf("%.0f", Rate(c.Bytes, f.Median.Wall)/mib), fmt.Sprintf("%.1f", ours/Rate(c.Bytes, f.Median.Wall))
			}
			row = append(row, rate)
			if n > 0 {
				times = append(times, ratio)
			}
		}
		row = append(row, times...)
		for _, bound := range []time.Duration{c.Bound, c.IO} {
			row = append(row, fmt.Sprintf("%.2f of %.0f", bound.Seconds()/c.Tools[0].Median.Inner.Seconds(), Rate(c.Bytes, bound)/mib))
		}
		rows = append(rows, row)
	}
	return rows
}

func (r *Report) memory() [][]string {
	head := []string{"encrypted image"}
	for _, tool := range r.Tools {
		head = append(head, tool.Name)
	}
	rows := [][]string{head}
	for _, c := range r.Cases {
		row := []string{c.name()}
		for _, f := range c.Tools {
			cell := "cannot"
			if f.Cannot == "" {
				cell = fmt.Sprintf("%d + %d", f.Median.Peak/mib, f.Median.Held/mib)
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	return rows
}

// cannots says what peers said of what they cannot do, once for each compression, without what differs from run to run.
func (r *Report) cannots() (lines []string) {
	for _, c := range r.Cases {
		for n, f := range c.Tools {
			if f.Cannot == "" {
				continue
			}
			said := strings.Split(f.Cannot, ": ") // the program, what it was doing, and what was wrong
			line := fmt.Sprintf("%s cannot do %s: %s: %s", r.Tools[n].Name, c.Compression.name(), said[0], strings.Join(said[max(1, len(said)-2):], ": "))
			if !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

func points(all []Point) [][]string {
	rows := [][]string{{"MiB", "layers", "s", "MiB/s", "peak + held, MiB"}}
	for _, p := range all {
		rows = append(rows, []string{
			fmt.Sprint(p.Bytes / mib), fmt.Sprint(p.Layers), fmt.Sprintf("%.2f", p.Median.Wall.Seconds()),
			fmt.Sprintf("%.0f", Rate(p.Bytes, p.Median.Wall)/mib), fmt.Sprintf("%d + %d", p.Median.Peak/mib, p.Median.Held/mib),
		})
	}
	return rows
}

// writeTable writes Markdown, the first column flush left and the others right.
func writeTable(t *strings.Builder, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for n, cell := range row {
			width[n] = max(width[n], len([]rune(cell)))
		}
	}
	for i, row := range rows {
		for n, cell := range row {
			pad := strings.Repeat(" ", width[n]-len([]rune(cell)))
			if n == 0 {
				fmt.Fprintf(t, "| %s%s ", cell, pad)
			} else {
				fmt.Fprintf(t, "| %s%s ", pad, cell)
			}
		}
		t.WriteString("|\n")
		if i == 0 {
			for n, w := range width {
				if n == 0 {
					t.WriteString("|" + strings.Repeat("-", w+2))
				} else {
					t.WriteString("|" + strings.Repeat("-", w+1) + ":")
				}
			}
			t.WriteString("|\n")
		}
	}
}

// The lines that a document has the report between.
const (
	beginMark = "<!-- ampoule bench pull: written by --update, not by hand -->\n"
	endMark   = "<!-- end of ampoule bench pull -->\n"
)

// Update puts the report between the marks of a document.
func (r *Report) Update(path string) error { return update(path, beginMark, endMark, r.Text()) }

func update(path, begin, end, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(b, []byte(begin))
	_, after, closed := bytes.Cut(rest, []byte(end))
	if !ok || !closed {
		return fmt.Errorf("%s: want the lines %q and %q for the report to go between", path, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return os.WriteFile(path, slices.Concat(before, []byte(begin+"\n"+text+"\n"+end), after), 0o644)
}
