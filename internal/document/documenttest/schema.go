// Package documenttest keeps the JSON schemas of documents, for editors, what the Go types
// and their comments say.
package documenttest

import (
	"bytes"
	"encoding"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/document"
)

var update = flag.Bool("update", false, "write the schemas anew")

// Schema fails the test if the file at path is not the schema of documents of type typ;
// with -update it writes it. sources are the folders of the packages that typ's come from.
func Schema(t *testing.T, path, title string, typ reflect.Type, sources ...string) {
	t.Helper()
	s := &schema{t: t, comments: map[string]string{}, values: map[string][]string{}}
	for _, folder := range sources {
		s.read(folder)
	}
	root := s.of(typ)
	root["$schema"], root["title"] = "https://json-schema.org/draft/2020-12/schema", title
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(root); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b.Bytes()) {
		t.Errorf("%s is not what the Go types say (%v): go test -update writes it anew", path, err)
	}
}

type schema struct {
	t        *testing.T
	comments map[string]string   // by "Type" and "Type.Field"
	values   map[string][]string // of the constants of a type
}

// read takes the comments and constants of a package.
func (s *schema) read(folder string) {
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil || len(files) == 0 {
		s.t.Fatal(folder, err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, decl := range file.Decls {
			group, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range group.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					s.readType(group, spec)
				case *ast.ValueSpec:
					s.readConstants(spec)
				}
			}
		}
	}
}

func (s *schema) readType(group *ast.GenDecl, spec *ast.TypeSpec) {
	doc := spec.Doc
	if doc == nil {
		doc = group.Doc
	}
	s.comments[spec.Name.Name] = text(doc)
	fields, ok := spec.Type.(*ast.StructType)
	if !ok {
		return
	}
	above := ""
	for _, field := range fields.Fields.List {
		comment := text(field.Doc)
		if comment == "" {
			comment = text(field.Comment)
		}
		if comment == "" && len(field.Names) == 1 && strings.Contains(above, field.Names[0].Name) {
			comment = above // it is about both
		}
		above = comment
		for _, name := range field.Names {
			s.comments[spec.Name.Name+"."+name.Name] = comment
		}
	}
}

func (s *schema) readConstants(spec *ast.ValueSpec) {
	of, ok := spec.Type.(*ast.Ident)
	if !ok {
		return
	}
	for _, value := range spec.Values {
		if literal, ok := value.(*ast.BasicLit); ok && literal.Kind == token.STRING {
			if text, err := strconv.Unquote(literal.Value); err == nil {
				s.values[of.Name] = append(s.values[of.Name], text)
			}
		}
	}
}

func text(comment *ast.CommentGroup) string {
	return strings.Join(strings.Fields(comment.Text()), " ")
}

type object = map[string]any

// or null: "allow:", and nothing after it, says nothing.
func orNull(kinds ...any) []any { return append(kinds, "null") }

func (s *schema) of(typ reflect.Type) object {
	if reflect.PointerTo(typ).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) || typ == reflect.TypeFor[api.HostIPMapping]() {
		return s.described(object{"type": "string"}, s.comments[typ.Name()])
	}
	if typ == reflect.TypeFor[time.Duration]() {
		return object{"type": "string", "pattern": "^([0-9.]+(h|m|s|ms|us|ns))+$"}
	}
	switch typ.Kind() {
	case reflect.Struct:
		properties := object{}
		for _, field := range document.Fields(typ) {
			properties[document.Key(field)] = s.field(typ, field)
		}
		return object{"type": orNull("object"), "properties": properties, "additionalProperties": false}
	case reflect.Map:
		return object{"type": orNull("object"), "additionalProperties": s.of(typ.Elem())}
	case reflect.Slice:
		return object{"type": orNull("array"), "items": s.of(typ.Elem())}
	case reflect.String:
		if values := s.values[typ.Name()]; len(values) > 0 {
			return object{"enum": values}
		}
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": orNull("boolean")}
	case reflect.Int:
		return object{"type": orNull("integer")}
	case reflect.Float64:
		return object{"type": orNull("number")}
	}
	s.t.Fatal("no schema for", typ)
	return nil
}

func (s *schema) field(of reflect.Type, field reflect.StructField) object {
	owner := of
	for _, i := range field.Index[:len(field.Index)-1] {
		owner = owner.Field(i).Type
	}
	comment := s.comments[owner.Name()+"."+field.Name]
	if unit := field.Tag.Get("size"); unit != "" {
		return s.described(object{"type": orNull("string", "integer")}, comment+" Written 512m, 1g; a bare number counts "+unit+".")
	}
	property := s.of(field.Type)
	if comment == "" {
		comment = s.comments[field.Type.Name()]
	}
	return s.described(property, comment)
}

func (s *schema) described(property object, comment string) object {
	if comment != "" {
		property["description"] = comment
	}
	return property
}
