// Package document reads the YAML files that people write for matchlock, strictly: what is
// not understood is refused, by its line.
package document

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/matchlock/matchlock/api"
)

// MaxSize is how large a document may be, in bytes.
const MaxSize = 1 << 20

const maxFaults = 20 // that are told of a file

// Decode reads one YAML document of at most MaxSize into a struct, by the names that its fields have in JSON. It refuses
// what the struct has no field for, and what makes YAML hard to read or slow: anchors, aliases, tags, keys that stand
// there twice. name stands for the file in errors, of which there may be several. An empty document says nothing.
//
// Types of api are read in the forms that flags have. A field that is a size has a tag, size:"MiB" or size:"GiB", that
// says what a bare number counts.
//
// The library would decode by itself, but then api's types would carry names for two formats, and an error in the text
// of a rule would not say where it is.
func Decode(text []byte, name string, into any) error {
	if len(text) > MaxSize {
		return fmt.Errorf("%s: larger than %s", name, api.FormatSize(MaxSize))
	}
	var doc yaml.Node
	from := yaml.NewDecoder(bytes.NewReader(text))
	if err := from.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := from.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: more than one document", name)
	}
	d := decoder{file: name}
	d.value(doc.Content[0], reflect.ValueOf(into).Elem(), "")
	if len(d.faults) > maxFaults {
		d.faults = append(d.faults[:maxFaults], fmt.Errorf("%s: and %d faults more", name, len(d.faults)-maxFaults))
	}
	return errors.Join(d.faults...)
}

type decoder struct {
	file   string
	faults []error
}

func (d *decoder) fault(n *yaml.Node, format string, args ...any) {
	d.faults = append(d.faults, fmt.Errorf("%s:%d: %w", d.file, n.Line, fmt.Errorf(format, args...)))
}

// value reads a node into v, where a bare number counts units if it is a size.
func (d *decoder) value(n *yaml.Node, v reflect.Value, unit string) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.fault(n, "anchors and aliases are not taken")
		return
	case n.Style&yaml.TaggedStyle != 0:
		d.fault(n, "tags are not taken: %s", n.Tag)
		return
	case n.ShortTag() == "!!null" && v.Kind() != reflect.String:
		return // "allow:", and nothing after it
	}
	if into, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if text, ok := d.scalar(n, "a text"); ok {
			if err := into.UnmarshalText([]byte(text)); err != nil {
				d.fault(n, "%w", err)
			}
		}
		return
	}
	if into, ok := v.Addr().Interface().(*api.HostIPMapping); ok {
		if text, ok := d.scalar(n, "NAME:IP"); ok {
			var err error
			if *into, err = api.ParseHost(text); err != nil {
				d.fault(n, "%w", err)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, func(key, value *yaml.Node) {
			if field, ok := fieldOf(v.Type(), key.Value); ok {
				d.value(value, v.FieldByIndex(field.Index), field.Tag.Get("size"))
				return
			}
			d.fault(key, "%w", &UnknownKeyError{key.Value, Keys(v.Type())})
		})
	case reflect.Map: // of strings
		v.Set(reflect.MakeMap(v.Type()))
		d.mapping(n, func(key, value *yaml.Node) {
			element := reflect.New(v.Type().Elem()).Elem()
			d.value(value, element, "")
			v.SetMapIndex(reflect.ValueOf(key.Value), element)
		})
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fault(n, "want a list")
			return
		}
		for _, item := range n.Content {
			element := reflect.New(v.Type().Elem()).Elem()
			if item.ShortTag() == "!!null" {
				d.fault(item, "nothing in a list")
				continue
			}
			d.value(item, element, "")
			v.Set(reflect.Append(v, element))
		}
	case reflect.String:
		if text, ok := d.scalar(n, "a text"); ok {
			v.SetString(text)
		}
	case reflect.Bool:
		if text, ok := d.scalar(n, "true or false"); ok {
			if n.ShortTag() != "!!bool" {
				d.fault(n, "%q: want true or false", text)
			}
			v.SetBool(strings.EqualFold(text, "true"))
		}
	case reflect.Int:
		if text, ok := d.scalar(n, "a number"); ok {
			i, err := strconv.ParseInt(text, 10, 32)
			if err != nil || n.ShortTag() != "!!int" {
				d.fault(n, "%q: want a number", text)
			}
			v.SetInt(i)
		}
	case reflect.Int64:
		if text, ok := d.scalar(n, "a size, or a duration"); ok {
			i, err := parseInt64(text, v.Type(), unit)
			if err != nil {
				d.fault(n, "%w", err)
			}
			v.SetInt(i)
		}
	case reflect.Float64:
		if text, ok := d.scalar(n, "a number"); ok {
			f, err := strconv.ParseFloat(text, 64)
			if err != nil || n.ShortTag() != "!!int" && n.ShortTag() != "!!float" {
				d.fault(n, "%q: want a number", text)
			}
			v.SetFloat(f)
		}
	default:
		panic("no way to read " + v.Type().String()) // a field was added to api; the test of the schema finds it first
	}
}

// scalar returns the text of what is no list and no mapping, as it was written.
func (d *decoder) scalar(n *yaml.Node, want string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		d.fault(n, "want %s", want)
		return "", false
	}
	return n.Value, true
}

func (d *decoder) mapping(n *yaml.Node, each func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, "want keys with values")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode || key.Anchor != "" || key.Style&yaml.TaggedStyle != 0:
			d.fault(key, "want a key")
		case seen[key.Value]:
			d.fault(key, "key %q stands there twice", key.Value)
		default:
			seen[key.Value] = true
			each(key, value)
		}
	}
}

// parseInt64 reads a time.Duration, or a size.
func parseInt64(text string, t reflect.Type, unit string) (int64, error) {
	if t == reflect.TypeFor[time.Duration]() {
		duration, err := time.ParseDuration(text)
		if err != nil || duration <= 0 {
			return 0, fmt.Errorf("%q: want a duration like 90s or 2h", text)
		}
		return int64(duration), nil
	}
	size, err := api.ParseSize(text, map[string]int64{"MiB": api.MiB, "GiB": api.GiB}[unit])
	if err == nil && size == 0 {
		err = fmt.Errorf("size %q: nothing is no size", text)
	}
	return size, err
}

// UnknownKeyError says that a document has a key of which nothing is known there.
type UnknownKeyError struct {
	Key   string
	Known []string
}

func (e *UnknownKeyError) Error() string { return fmt.Sprintf("unknown key %q", e.Key) }

// Hint names those that are known.
func (e *UnknownKeyError) Hint() string { return "known are " + strings.Join(e.Known, ", ") }

// Fields are those of a struct that a document can have, with those of embedded structs.
func Fields(t reflect.Type) []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return Key(f) == "" })
}

// fieldOf finds a field by its key.
func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for _, f := range Fields(t) {
		if Key(f) == key {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// Keys are those that a document of a struct can have, in order.
func Keys(t reflect.Type) []string {
	var keys []string
	for _, f := range Fields(t) {
		keys = append(keys, Key(f))
	}
	slices.Sort(keys)
	return keys
}

// Key is a field's, "" if no document has it.
func Key(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return strings.TrimPrefix(name, "-")
}
