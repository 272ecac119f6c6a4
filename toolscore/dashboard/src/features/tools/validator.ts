import { Validator, type Schema } from "@cfworker/json-schema";
import {
  createErrorHandler,
  getDefaultFormState,
  toErrorSchema,
  unwrapErrorHandler,
  validationDataMerge,
  type CustomValidator,
  type ErrorTransformer,
  type FormContextType,
  type RJSFSchema,
  type RJSFValidationError,
  type UiSchema,
  type ValidationData,
  type ValidatorType,
} from "@rjsf/utils";

const MAX_ERRORS = 50;

/**
 * Checks a form's data against its schema without making code of the schema, which the page's policy refuses.
 *
 * The gateway checks again, and has the last word.
 */
export const validator: ValidatorType = {
  isValid(schema: RJSFSchema, value: unknown, root: RJSFSchema): boolean {
    return problems(schema, value, root).length === 0;
  },
  rawValidation<Result>(schema: RJSFSchema, value?: unknown) {
    return { errors: problems(schema, value, schema) as Result[] };
  },
  validateFormData<T>(
    value: T | undefined,
    schema: RJSFSchema,
    customValidate?: CustomValidator<T>,
    transformErrors?: ErrorTransformer<T>,
    uiSchema?: UiSchema<T>,
  ): ValidationData<T> {
    const found = problems(schema, value, schema);
    const errors = transformErrors?.(found, uiSchema) ?? found;
    const said: ValidationData<T> = { errors, errorSchema: toErrorSchema<T>(errors) };
    if (customValidate === undefined) return said;
    const filled = getDefaultFormState<T, RJSFSchema, FormContextType>(validator, schema, value, schema, true) as T;
    const more = customValidate(filled, createErrorHandler<T>(filled), uiSchema, said.errorSchema);
    return validationDataMerge<T>(said, unwrapErrorHandler<T>(more));
  },
  reset() {
    // it remembers nothing
  },
};

function problems(schema: RJSFSchema, value: unknown, root: RJSFSchema): RJSFValidationError[] {
  try {
    const whole = schema === root || root === undefined ? schema : { ...schema, $defs: { ...root["$defs"], ...schema["$defs"] }, definitions: { ...root.definitions, ...schema.definitions } };
    const { errors } = new Validator(whole as Schema, "2020-12", false).validate(value ?? {});
    return errors
      .filter((one) => !["properties", "items", "$ref", "allOf", "prefixItems"].includes(one.keyword))
      .slice(0, MAX_ERRORS)
      .map((one) => {
        const missing = one.keyword === "required" ? /"([^"]+)"/.exec(one.error)?.[1] : undefined;
        const path = one.instanceLocation.replace(/^#/, "").split("/").filter(Boolean).map((part) => decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~"));
        const property = `.${[...path, ...(missing === undefined ? [] : [missing])].join(".")}`;
        const message = missing === undefined ? one.error : "is required";
        return { name: one.keyword, property, message, stack: `${property} ${message}`, params: missing === undefined ? {} : { missingProperty: missing }, schemaPath: one.keywordLocation };
      });
  } catch {
    return []; // a schema that cannot be read here is the gateway's to judge
  }
}
