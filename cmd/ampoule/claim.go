package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/qemu"
)

const (
	recordFile = "run.json" // what the folder holds
	lockFile   = ".lock"    // held while a run writes to the folder
)

// The states of a record.
const (
	stateRunning  = "running"  // or broken off, if nobody holds the lock
	stateFinished = "finished" // the VM reported an outcome
)

// A record says which run a folder holds. Paths in it are names in the folder.
type record struct {
	ID          string               `json:"computation"` // computation_id, or sha384:… of a manifest that has none
	Manifest    string               `json:"manifest_sha384"`
	Measurement evidence.Measurement `json:"measurement"`
	State       string               `json:"state"`
	Facts       *runFacts            `json:"facts,omitempty"` // when finished
}

// A claim is a folder that this process alone writes to.
type claim struct {
	dir    string
	lock   *os.File
	record record
	before []byte // the record that begin replaces
}

// claimFolder takes out for a run of doc with measurement m. If that very run has finished there, done is what it came to, and nothing
// must start. A folder with anything else of a run in it is refused, unless again says to start anew there.
func claimFolder(out string, doc *manifest.Manifest, m evidence.Measurement, again bool) (c *claim, done *runFacts, err error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, nil, err
	}
	sum := doc.SHA384()
	c = &claim{dir: out, record: record{ID: doc.ComputationID, Manifest: fmt.Sprintf("%x", sum), Measurement: m, State: stateRunning}}
	if c.record.ID == "" {
		c.record.ID = fmt.Sprintf("sha384:%x", sum)
	}
	if c.lock, err = os.OpenFile(filepath.Join(out, lockFile), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, nil, err
	}
	lock := c.lock
	defer func() {
		if err != nil || done != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := unix.Flock(int(c.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil, fmt.Errorf("--out %s: another ampoule run is at work there; wait for it, or name another folder", out)
	} else if err != nil {
		return nil, nil, fmt.Errorf("lock %s: %w", out, err)
	}
	c.before, err = os.ReadFile(filepath.Join(out, recordFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if again {
		return c, nil, nil
	}
	done, err = c.earlier()
	return c, done, err
}

// earlier judges what the folder holds.
func (c *claim) earlier() (done *runFacts, err error) {
	if c.before == nil {
		return nil, c.empty()
	}
	var was record
	if err := json.Unmarshal(c.before, &was); err != nil || was.State == stateFinished && (was.Facts == nil || was.Facts.Outcome == nil) {
		return nil, fmt.Errorf("--out %s: %s is not what ampoule run writes (%v); name another folder, or start anew there with --again", c.dir, recordFile, err)
	}
	switch {
	case was.ID != c.record.ID:
		return nil, fmt.Errorf("--out %s: holds computation %q and this is %q; name another folder, or replace it with --again", c.dir, was.ID, c.record.ID)
	case was.Manifest != c.record.Manifest:
		return nil, fmt.Errorf("--out %s: computation %q ran there with another manifest (sha384 %s); give this one another computation_id, or replace it with --again",
			c.dir, was.ID, was.Manifest)
	case was.Measurement != c.record.Measurement:
		return nil, fmt.Errorf("--out %s: computation %q ran there with measurement %s and this is %s; name another folder, or replace it with --again",
			c.dir, was.ID, was.Measurement, c.record.Measurement)
	case was.State != stateFinished:
		return nil, fmt.Errorf("--out %s: a run of computation %q broke off there; nothing of it is taken up. Start it anew with --again", c.dir, was.ID)
	}
	f := was.Facts
	for _, p := range []*string{&f.Result, &f.Receipt, &f.Log, &f.Console} {
		if *p == "" {
			continue
		}
		*p = filepath.Join(c.dir, filepath.Base(*p))
		if _, err := os.Stat(*p); err != nil {
			return nil, fmt.Errorf("--out %s: computation %q has run there, and what it left is gone: %w; run it anew with --again", c.dir, was.ID, err)
		}
	}
	f.Earlier = true
	return f, nil
}

// empty refuses a folder with artefacts that no record is of.
func (c *claim) empty() error {
	for _, name := range []string{qemu.SealedFile, qemu.PlainFile, qemu.ReceiptFile, qemu.EventsFile} {
		if _, err := os.Lstat(filepath.Join(c.dir, name)); err == nil {
			return fmt.Errorf("--out %s: holds %s, and no %s says of which run; name another folder, or replace it with --again", c.dir, name, recordFile)
		}
	}
	return nil
}

// begin records that the run has started; until finish says otherwise, it broke off.
func (c *claim) begin() error { return c.save() }

func (c *claim) save() error {
	b, err := json.MarshalIndent(c.record, "", "  ")
	if err != nil {
		return err
	}
	return c.write(append(b, '\n'))
}

// undo says that nothing has started after all.
func (c *claim) undo() error {
	if c.before == nil {
		return os.Remove(filepath.Join(c.dir, recordFile))
	}
	return c.write(c.before)
}

// finish records what it came to.
func (c *claim) finish(f runFacts) error {
	if f.Outcome == nil {
		return nil
	}
	for _, p := range []*string{&f.Result, &f.Receipt, &f.Log, &f.Console} {
		if *p != "" {
			*p = filepath.Base(*p)
		}
	}
	c.record.State, c.record.Facts = stateFinished, &f
	return c.save()
}

// write replaces the record as a whole.
func (c *claim) write(b []byte) error {
	f, err := os.CreateTemp(c.dir, ".record-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(c.dir, recordFile))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// close gives the folder free.
func (c *claim) close() error { return c.lock.Close() }
