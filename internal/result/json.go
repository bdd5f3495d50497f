package result

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// encode is the one JSON form of everything here: members in the order of the type, no white space.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // so that jq and others write the same bytes
	if err := e.Encode(v); err != nil {
		panic(err) // a type of this package that JSON cannot hold
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// decode reads what encode wrote, white space between tokens aside. encoding/json lets a member come twice, in any
// case, and mends broken UTF-8; none of that survives being written again, so comparing the two refuses it all.
func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("bytes after its end")
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		return err
	}
	if again := encode(v); !bytes.Equal(again, compact.Bytes()) {
		i := 0
		for i < min(len(again), compact.Len()) && again[i] == compact.Bytes()[i] {
			i++
		}
		return fmt.Errorf("not in its one form, from byte %d without white space: a member out of order, there twice, in another case or needlessly empty", i)
	}
	return nil
}
