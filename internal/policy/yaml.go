package policy

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

	"go.yaml.in/yaml/v3"

	"github.com/matchlock/matchlock/api"
)

const (
	maxFile   = 1 << 20 // bytes
	maxFaults = 20      // that are told of a file
)

// decodeYAML reads one YAML document into a struct, by the names that its fields have in JSON. It refuses what the struct
// has no field for, and what makes YAML hard to read or slow: anchors, aliases, tags, keys that stand there twice.
//
// The library would decode by itself, but then api's types would carry names for two formats, and an error in the text
// of a rule would not say where it is.
func decodeYAML(text []byte, name string, into any) error {
	if len(text) > maxFile {
		return fmt.Errorf("%s: larger than %s", name, api.FormatSize(maxFile))
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
	d.value(doc.Content[0], reflect.ValueOf(into).Elem())
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

func (d *decoder) value(n *yaml.Node, v reflect.Value) {
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
			if field, ok := fieldOf(v, key.Value); ok {
				d.value(value, field)
				return
			}
			d.fault(key, "%w", &Fault{fmt.Errorf("unknown key %q", key.Value), "known are " + strings.Join(keysOf(v.Type()), ", ")})
		})
	case reflect.Map: // of strings
		v.Set(reflect.MakeMap(v.Type()))
		d.mapping(n, func(key, value *yaml.Node) {
			element := reflect.New(v.Type().Elem()).Elem()
			d.value(value, element)
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
			d.value(item, element)
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

// fieldOf finds a field by its name in JSON, in embedded structs too.
func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	for _, f := range reflect.VisibleFields(v.Type()) {
		if name := nameOf(f); name != "" && name == key {
			return v.FieldByIndex(f.Index), true
		}
	}
	return reflect.Value{}, false
}

func keysOf(t reflect.Type) []string {
	var keys []string
	for _, f := range reflect.VisibleFields(t) {
		if name := nameOf(f); name != "" {
			keys = append(keys, name)
		}
	}
	slices.Sort(keys)
	return keys
}

func nameOf(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}
